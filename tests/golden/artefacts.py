"""Digests of the artefacts of a small generated corpus, one digest for each kind of artefact.

    python -m tests.golden.artefacts

writes digests/artefacts.json, and prints the digests that moved. Run the command when an artefact changes on purpose, in the same
commit, and name the change in the changelog. Bytes that belong to the version of a package (Parquet files, the JSON of a tokenizer) are
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
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from skillshard.tags import Tags
from tests.conftest import HERE, tree, write_corpus
from tests.tokenizers_trained import letter_tokenizer, letters, with_bos
from tests.topics import topic_corpus

DIGESTS = Path(__file__).parent / "digests" / "artefacts.json"
NUM_SAMPLES = {"add": 120, "carry": 60, "negate": 40}


class Artefacts:
    """The artefacts of a corpus. Each artefact is made at the first request.

    Args:
        folder: A new directory.
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
    """Round the floats of a JSON value to nine digits, because libraries and processors differ in the last digits."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


def of_value(value: Any) -> str:
    return digest(to_json(rounded(value)))


def tags_by_metadata(artefacts: Artefacts) -> str:
    manifest = artefacts.tags.manifest.model_dump(mode="json", by_alias=True)
    for part in manifest["parts"]:
        del part["part_digest"]
    rows = [list(artefacts.tags.rows(part)) for part in range(len(manifest["parts"]))]
    return of_value([manifest, rows])


def tags_by_embedding(artefacts: Artefacts) -> str:
    """Cluster with the lexical encoder: names, sizes, and the cluster of every sample."""
    corpus = Corpus.open(topic_corpus(artefacts.folder / "topics", 240))
    tagger = taggers.embedding(taggers.lexical(), skills=5)
    tags: Tags = taggers.tag_corpus(corpus, tagger, artefacts.folder / "clusters", backend=HERE, partition_bytes=9_000)
    rows = [[row.id, row.skill] for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]
    return of_value([[skill.model_dump() for skill in tags.manifest.skills], rows])


def shards(artefacts: Artefacts) -> str:
    """Digest the tars and indexes byte for byte, and the manifest without the digest of the tags' Parquet files."""
    manifest = artefacts.shards.manifest.model_dump(mode="json", by_alias=True)
    del manifest["made_from"]["tags"]
    files = {name: digest(data) for name, data in tree(artefacts.folder / "shards").items() if name != "manifest.json"}
    return of_value([manifest, files])


def tars(artefacts: Artefacts) -> str:
    """Digest the tars and indexes byte for byte: the bytes that a mixer reads."""
    files = tree(artefacts.folder / "shards")
    return of_value({name: digest(data) for name, data in files.items() if name.endswith((".tar", ".index.npy"))})


def tokens(artefacts: Artefacts) -> str:
    """Digest token counts byte for byte."""
    place = artefacts.folder / "counts"
    counts = write_tokens(artefacts.shards, letter_tokenizer(), place, counts_only=True, backend=HERE)
    skills = [skill.model_dump(mode="json") for skill in counts.manifest.skills]
    for columns in (skill[split] for skill in skills for split in ("train", "holdout")):
        for name in ("ids_digest", "answers_digest", "checks_digest"):
            assert set(columns.pop(name)) <= {None}
    return of_value([skills, {name: digest(data) for name, data in tree(place).items() if name.endswith(".npy")}])


def token_ids(artefacts: Artefacts) -> str:
    """Digest token ids and their checks byte for byte."""
    place = artefacts.folder / "tokens"
    write_tokens(artefacts.shards, with_bos(letter_tokenizer()), place, special_tokens=True, backend=HERE)
    files = {name: digest(data) for name, data in tree(place).items() if name.endswith((".npy", ".bin"))}
    return of_value(files)


def edges(_: Artefacts) -> str:
    """Derive the edges and standard errors of every method and unit, from given losses."""
    skills, rows = ("add", "carry", "negate"), []
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
                rows.append(
                    [graph.edges.tolist(), None if graph.standard_errors is None else graph.standard_errors.tolist()]
                )
    return of_value(rows)


def rounds(artefacts: Artefacts) -> str:
    """Decide the rounds of a run of SKILL-IT that reports losses, and of a run of fixed weights."""
    policies = {
        "live": chain(skill_it(SkillGraph.chain(tuple(NUM_SAMPLES)), eta=0.5), floor(0.05)),
        "fixed": fixed({"add": 0.5, "carry": 0.3, "negate": 0.2}),
    }
    rows = []
    for name, policy in policies.items():
        mixer = Mixer(
            artefacts.shards,
            policy,
            ledger=artefacts.folder / name,
            round_draws=40,
            step_draws=10,
            seed=3,
            initial_losses=False,
        )
        for number in range(6):
            losses = {skill: 3 - position - number / (4 + position) for position, skill in enumerate(NUM_SAMPLES)}
            mixer.report(4 * number, losses)
            record = mixer.round(number)
            rows.append([record.weights, record.counts, record.carry, record.drawn_before, record.num_draws])
    return of_value(rows)


KINDS: dict[str, Callable[[Artefacts], str]] = {
    "tags by metadata": tags_by_metadata,
    "tags by embedding": tags_by_embedding,
    "shards": shards,
    "tars": tars,
    "tokens": tokens,
    "token ids": token_ids,
    "edges": edges,
    "rounds": rounds,
}


def committed() -> dict[str, str]:
    digests: dict[str, str] = json.loads(DIGESTS.read_text())
    return digests


def main() -> int:
    """Write the digests of the present code."""
    before = committed() if DIGESTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        artefacts = Artefacts(Path(folder))
        digests = {kind: of(artefacts) for kind, of in KINDS.items()}
    DIGESTS.write_bytes(to_json(digests))
    moved = [kind for kind in KINDS if before.get(kind) != digests[kind]]
    sys.stdout.write(f"{DIGESTS} is written; moved: {', '.join(moved) or 'nothing'}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
