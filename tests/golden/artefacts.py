"""What a small generated corpus becomes, as one digest for each kind of artefact.

    python -m tests.golden.artefacts

writes digests/artefacts.json anew and says which digests moved. Run the command where an artefact changes on purpose, in the same
commit, and name the change in the changelog. Bytes that belong to a version of a package (Parquet files, a tokenizer's JSON) are
left out, and floats are rounded to nine digits, so that every machine has the same digests.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skillshard import taggers
from skillshard.canonical import digest, to_json
from skillshard.corpus import Corpus
from skillshard.graph.edges import EdgeRule, LossCurve, derive_edges, parse_edges
from skillshard.graph.plan import METHODS, plan_trials
from skillshard.graph.skill_graph import SkillGraph
from skillshard.keyed_random import keyed_words
from skillshard.mixing.mixer import Mixer
from skillshard.policies import chain, fixed, floor, skill_it
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import count_tokens
from skillshard.shards.write import write_shards
from skillshard.tags import Tags
from tests.conftest import HERE, tree, write_corpus
from tests.tokenizers_trained import letter_tokenizer, letters
from tests.topics import topic_corpus

DIGESTS = Path(__file__).parent / "digests" / "artefacts.json"
NUM_SAMPLES = {"add": 120, "carry": 60, "negate": 40}


class Made:
    """The artefacts of one corpus, each made where it is first asked for.

    Args:
        folder: a new directory for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        records = [letters(skill, number, number % 9) for skill, num in NUM_SAMPLES.items() for number in range(num)]
        self.corpus = Corpus.open(write_corpus(folder / "corpus", records))
        tagger = taggers.metadata("skill")
        self.tags = taggers.tag_corpus(self.corpus, tagger, folder / "tags", backend=HERE, partition_bytes=4_000)
        write_shards(self.corpus, self.tags, folder / "shards", shard_bytes=40_000, holdout=0.1, backend=HERE)
        self.shards = ShardSet.open(folder / "shards")


def rounded(value: Any) -> Any:
    """A value of JSON whose floats have nine digits: libraries and processors differ in the last ones."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


def of_value(value: Any) -> str:
    return digest(to_json(rounded(value)))


def tags_by_metadata(made: Made) -> str:
    manifest = made.tags.manifest.model_dump(mode="json", by_alias=True)
    for part in manifest["parts"]:
        del part["part_digest"]
    rows = [list(made.tags.rows(part)) for part in range(len(manifest["parts"]))]
    return of_value([manifest, rows])


def tags_by_embedding(made: Made) -> str:
    """Clusters of the lexical encoder: names, sizes, and the cluster of every sample."""
    corpus = Corpus.open(topic_corpus(made.folder / "topics", 240))
    tagger = taggers.embedding(taggers.lexical(), skills=5)
    tags: Tags = taggers.tag_corpus(corpus, tagger, made.folder / "clusters", backend=HERE, partition_bytes=9_000)
    rows = [[row.id, row.skill] for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]
    return of_value([[skill.model_dump() for skill in tags.manifest.skills], rows])


def shards(made: Made) -> str:
    """The tars and indexes byte for byte, and the manifest but for the digest of the tags' Parquet files."""
    manifest = made.shards.manifest.model_dump(mode="json", by_alias=True)
    del manifest["made_from"]["tags"]
    files = {name: digest(data) for name, data in tree(made.folder / "shards").items() if name != "manifest.json"}
    return of_value([manifest, files])


def tokens(made: Made) -> str:
    place = made.folder / "tokens"
    counts = count_tokens(made.shards, letter_tokenizer(), place, special_tokens=False, backend=HERE)
    skills = [skill.model_dump(mode="json") for skill in counts.manifest.skills]
    return of_value([skills, {name: digest(data) for name, data in tree(place).items() if name.endswith(".npy")}])


def edges(_: Made) -> str:
    """The edges and standard errors of every method and unit, from losses that are given."""
    skills, found = ("add", "carry", "negate"), []
    for method in METHODS:
        runs = plan_trials(method, skills, skills, batch_size=12, seeds=(0, 1))
        curves = []
        for run in runs:
            raw = keyed_words(15, "losses", run.seed, *run.trained_on) >> np.uint64(44)
            fall = np.linspace(1, 0.3, 5)[:, None] * (1 + raw.reshape(5, 3).astype(np.float64) / 2**21)
            curves.append(LossCurve(run.trained_on, run.seed, fall))
        for word in ("absolute", "relative", "threshold:0.7", "threshold-own:0.7"):
            unit, threshold = parse_edges(word)
            for direct in (None, 0.2):
                rule = EdgeRule(
                    unit, threshold, "end", clamp=False, off_diagonal=0.5, drop_uncertain=False, direct=direct
                )
                graph = derive_edges(method, skills, skills, curves, rule=rule)
                found.append(
                    [graph.edges.tolist(), None if graph.standard_errors is None else graph.standard_errors.tolist()]
                )
    return of_value(found)


def rounds(made: Made) -> str:
    """The rounds of a run of SKILL-IT that reports losses, and of a run of fixed weights."""
    policies = {
        "live": chain(skill_it(SkillGraph.chain(tuple(NUM_SAMPLES)), eta=0.5), floor(0.05)),
        "fixed": fixed({"add": 0.5, "carry": 0.3, "negate": 0.2}),
    }
    found = []
    for name, policy in policies.items():
        mixer = Mixer(
            made.shards, policy, ledger=made.folder / name, round_draws=40, step_draws=10, seed=3, initial_losses=False
        )
        for number in range(6):
            losses = {skill: 3 - at - number / (4 + at) for at, skill in enumerate(NUM_SAMPLES)}
            mixer.report(4 * number, losses)
            record = mixer.round(number)
            found.append([record.weights, record.counts, record.carry, record.drawn_before, record.num_draws])
    return of_value(found)


KINDS: dict[str, Callable[[Made], str]] = {
    "tags by metadata": tags_by_metadata,
    "tags by embedding": tags_by_embedding,
    "shards": shards,
    "tokens": tokens,
    "edges": edges,
    "rounds": rounds,
}


def committed() -> dict[str, str]:
    found: dict[str, str] = json.loads(DIGESTS.read_text())
    return found


def main() -> int:
    """Write the digests anew."""
    before = committed() if DIGESTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        made = Made(Path(folder))
        found = {kind: of(made) for kind, of in KINDS.items()}
    DIGESTS.write_bytes(to_json(found))
    moved = [kind for kind in KINDS if before.get(kind) != found[kind]]
    sys.stdout.write(f"{DIGESTS} is written; moved: {', '.join(moved) or 'nothing'}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
