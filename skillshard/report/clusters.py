"""Print and draw tags, clusters and the agreement of two taggings."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson
from jaxtyping import Float

from skillshard import artefact, places, storage
from skillshard import tags as tags_module
from skillshard.corpus import MISSING, Corpus, CorpusReading, Sample, category_of, lookup, read_partition
from skillshard.errors import TagsError
from skillshard.extras import needed
from skillshard.report.figures import draw_agreement, draw_curve, draw_map, draw_sizes, draw_trajectories, refuse_file
from skillshard.report.text import print_line, print_table, share, show_saved_clusters, show_tags
from skillshard.taggers.agreement import Agreement, agreement
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import EMBEDDINGS, array_place, has_embeddings, sample_vectors
from skillshard.taggers.clusters.fit import CRITERION, try_range
from skillshard.taggers.clusters.kmeans import Choice
from skillshard.taggers.clusters.saved import SavedClusters, has_clusters
from skillshard.taggers.fields import read_field
from skillshard.taggers.rows import sample_rows
from skillshard.tags import Tags, refuse_two_forms

POINTS_IN_MAP = 2000
"""Number of samples in a map. t-SNE of 2,000 points takes seconds, and more dots would cover each other."""
LOSS = "loss"


def show_clusters(
    place: str | os.PathLike[str],
    *,
    against: str | None = None,
    corpus: Sequence[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
    skills_range: tuple[int, int] | None = None,
) -> None:
    """Print tags, compare the tags with other tags or a metadata field, try numbers of clusters, and draw pictures.

    Args:
        place: Directory of the tags.
        against: Metadata field, or directory of other tags of the same rows.
        corpus: Files of the corpus, from which the field is read if the field is not stored beside the tags.
        pictures: Directory for sizes.png, and for map.png, choice.png, trajectories.png and agreement.png if the tags have the data.
        skills_range: Smallest and largest number of clusters to try on the embeddings beside the tags. No text is encoded, and the tags
            stay as they are. The picture choice.png shows these numbers.

    Raises:
        TagsError: `place` holds no tags, or no sample can be compared.
        ExtraError: A package that compares or draws is not installed.
    """
    if against is not None:
        needed("cluster", what="`against`")
    if pictures is not None:
        needed("cluster", "plots", what="`pictures`")
    if artefact.kind(place) != tags_module.MANIFEST:
        raise TagsError(
            f"{os.fspath(place)} is not tags: `against`, `corpus`, `pictures` and `skills_range` are for tags."
        )
    tags = Tags.open(place)
    # Everything that can fail comes before the first line of the output.
    if pictures is not None:
        refuse_file(pictures)
    measured = None if against is None else compare(tags, against, corpus)
    tried = None if skills_range is None else try_skills(tags, skills_range)
    show_tags(tags)
    if has_clusters(tags.folder):
        show_saved_clusters(SavedClusters.open(tags.folder))
    if measured is not None:
        show_agreement(measured, str(against))
    choices = None if tried is None else show_tried(tried)
    if pictures is not None:
        drawn = draw_tags(tags, places.local_path(pictures), measured, str(against), choices)
        print_line(f"pictures: {', '.join(str(path) for path in drawn)}")


def try_skills(tags: Tags, skills_range: tuple[int, int]) -> list[tuple[Choice, list[int]]]:
    """Try numbers of clusters on a sample of the embeddings beside tags. Return each number with its score and the sizes of its clusters.

    Raises:
        TagsError: The tags have no embeddings, or the range does not fit the samples.
    """
    needed("cluster", what="`skills_range`")
    kmeans.refuse_range(skills_range)
    if not has_embeddings(tags.folder):
        raise TagsError(
            f"{places.public(tags.folder)} has no embeddings to cluster, which `skills_range` needs. Give tags that 'skillshard tag embedding' wrote."
        )
    num_rows = [part.num_rows for part in tags.manifest.parts]
    files = [array_place(tags.place(EMBEDDINGS), part) for part in range(len(num_rows))]
    sample = sample_vectors(files, num_rows, kmeans.sample_size(skills_range[1]), seed=0)
    spherical = not has_clusters(tags.folder) or SavedClusters.open(tags.folder).clusters.spherical
    return try_range(sample.points, skills_range, spherical=spherical)


def show_tried(tried: Sequence[tuple[Choice, list[int]]]) -> list[Choice]:
    """Print a table of numbers of clusters, and return the numbers with their scores."""
    rows = [
        (
            f"{choice.num_clusters:,}",
            f"{choice.score:.3f}",
            share(min(sizes), sum(sizes)),
            share(max(sizes), sum(sizes)),
        )
        for choice, sizes in tried
    ]
    print_table(("skills", CRITERION, "smallest skill", "largest skill"), rows)
    choices = [choice for choice, _ in tried]
    print_line(" ".join(kmeans.about_choice(choices, kmeans.best_of(choices).num_clusters)))
    return choices


def show_agreement(measured: Agreement, against: str) -> None:
    total = int(measured.counts.sum())
    for name, counts in zip(measured.found, measured.counts, strict=True):
        best = [column for column in np.argsort(-counts, kind="stable")[:3] if counts[column]]
        main = ", ".join(f"{measured.true[column]} {share(int(counts[column]), int(counts.sum()))}" for column in best)
        print_line(f"{name} ({counts.sum():,}): {main}")
    print_line(
        f"agreement with {against} ({len(measured.found)} skills, {len(measured.true)} values, {total:,} samples): NMI {measured.nmi:.3f}, "
        f"ARI {measured.ari:.3f}, purity {measured.purity:.3f}, one-to-one accuracy {measured.accuracy:.3f}"
    )


def compare(tags: Tags, against: str, corpus: Sequence[str] | None = None) -> Agreement:
    """Measure the agreement of tags with a metadata field or with other tags.

    Raises:
        TagsError: The other tags have other rows, the field does not exist, or no sample has both a skill and a value.
    """
    num_parts = len(tags.manifest.parts)
    if corpus:
        values: Iterable[Sequence[str | None]] = _from_corpus(tags, against, corpus)
    elif Path(against).is_dir():
        other = Tags.open(against)
        # Two taggings are paired row by row, so both must be of the same rows in the same partitions.
        refuse_two_forms(tags, other)
        digests = [[part.rows_digests for part in each.manifest.parts] for each in (tags, other)]
        if digests[0] != digests[1]:
            raise TagsError(
                f"{places.public(tags.folder)} and {against} are not tags of the same rows: another corpus or another partition size. Tag both alike."
            )
        values = ([row.skill for row in other.rows(part)] for part in range(num_parts))
    else:
        values = read_field(tags.folder, against, num_parts)
    pairs = (
        (row.skill, value)
        for part, column in enumerate(values)
        for row, value in zip(tags.rows(part), column, strict=True)
        if row.skill is not None and value is not None
    )
    return agreement(pairs)


def _from_corpus(tags: Tags, field: str, corpus: Sequence[str]) -> Iterable[list[str | None]]:
    """Yield a field of every row, part by part."""
    arguments = tags.manifest.made_from["arguments"]
    opened = Corpus.open(list(corpus), layout=tags.layout)
    for note in opened.notes():
        print_line(f"note: {note}", to_stderr=True)
    reading = CorpusReading.from_json(arguments["reading"])
    partitions = tags.partitions_of(opened)
    # Checked before anything is read: rows of other partitions would be paired with the wrong tags.
    if [part.bounds for part in partitions] != [part.bounds for part in tags.manifest.parts]:
        raise TagsError(
            f"the corpus given is not the one that {places.public(tags.folder)} tags: other files, or they changed."
        )
    for partition in partitions:
        rows = read_partition(partition, reading)
        yield [_value(row, field) if isinstance(row, Sample) else None for row in rows]


def _value(sample: Sample, field: str) -> str | None:
    value = lookup(sample, field)
    if value is MISSING or value is None:
        return None
    return category_of(value) if isinstance(value, str | int) else str(value)


# --- pictures --------------------------------------------------------------------------------------------------------


def draw_tags(
    tags: Tags, folder: Path, measured: Agreement | None, against: str, choices: Sequence[Choice] | None = None
) -> list[Path]:
    """Draw every picture for which the tags have data, and return the paths. `choices` are numbers of clusters that were tried later."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {skill.name: skill.num_samples for skill in tags.manifest.skills}
    drawn = [folder / "sizes.png"]
    draw_sizes(sizes, drawn[0])
    if has_embeddings(tags.folder):
        points, skills = _sampled(tags)
        drawn.append(folder / "map.png")
        draw_map(flattened(points), skills, list(sizes), drawn[-1])
    if choices is not None:
        drawn.append(folder / "choice.png")
        curve = {choice.num_clusters: choice.score for choice in choices}
        draw_curve(curve, kmeans.best_of(choices).num_clusters, CRITERION, drawn[-1])
    elif has_clusters(tags.folder) and (model := SavedClusters.open(tags.folder)).manifest.tried:
        drawn.append(folder / "choice.png")
        tried = {number.num_clusters: number.score for number in model.manifest.tried}
        draw_curve(tried, len(model.names), str(model.manifest.criterion), drawn[-1])
    if has_clusters(tags.folder) and model_kind(tags) == LOSS:
        drawn.append(folder / "trajectories.png")
        steps, curves = mean_trajectories(tags.place("model"))
        draw_trajectories(steps, curves, drawn[-1])
    if measured is not None:
        drawn.append(folder / "agreement.png")
        draw_agreement(measured, against, drawn[-1])
    return drawn


def model_kind(tags: Tags) -> str:
    """Return the kind of tagger that made the clusters beside the tags."""
    return SavedClusters.open(tags.folder).manifest.encoder.kind


def mean_trajectories(folder: str) -> tuple[list[int], dict[str, list[float]]]:
    """Return steps, and for each skill the mean loss of its fitting samples at these steps, in nats per token, over all trials."""
    steps = SavedClusters.open(folder).manifest.encoder.arguments["kept_steps"]
    losses: Float[np.ndarray, "trial checkpoint sample"] = storage.load_array(places.join(folder, "losses.npy"))
    # The file of the fitting samples keeps its name from the time when fitting samples were called the probe.
    rows = [orjson.loads(line) for line in storage.read_bytes(places.join(folder, "probe.jsonl")).splitlines()]
    skill_of = np.array([row["skill"] for row in rows])
    return steps, {
        str(name): losses[:, :, skill_of == name].mean(axis=(0, 2), dtype=np.float64).tolist()
        for name in np.unique(skill_of)
    }


def _sampled(tags: Tags) -> tuple[Float[np.ndarray, "point dim"], list[str]]:
    """Return the embeddings of up to `POINTS_IN_MAP` samples, and their skills."""
    # A fixed seed, so that the same tags always give the same picture.
    rows = sample_rows([part.num_rows for part in tags.manifest.parts], POINTS_IN_MAP, seed=0)
    points, skills = [], []
    for part, chosen in enumerate(rows):
        tag_rows = list(tags.rows(part))
        tagged = [int(row) for row in chosen if tag_rows[row].skill is not None]
        points.append(storage.load_array(array_place(tags.place(EMBEDDINGS), part))[tagged].astype(np.float32))
        skills += [str(tag_rows[row].skill) for row in tagged]
    return np.concatenate(points), skills


def flattened(points: Float[np.ndarray, "point dim"]) -> Float[np.ndarray, "point 2"]:
    """Place points in two dimensions: by t-SNE with cosine distances, or for few points by their two main directions.

    Reference:
        van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # with more threads the order of sums, and so the picture, would depend on the machine
        # t-SNE needs a perplexity of several points, and of few points or dimensions it only shows noise.
        if len(points) < 50 or points.shape[1] < 3:
            padded = np.pad(points, ((0, max(0, 2 - len(points))), (0, max(0, 2 - points.shape[1]))))
            return PCA(2, random_state=0).fit_transform(padded)[: len(points)].astype(np.float32)
        flat = TSNE(2, metric="cosine", init="random", random_state=0, perplexity=min(30, len(points) / 4))
        return flat.fit_transform(points).astype(np.float32)
