"""Digests of the order of the stream: a digest for each pure function, and for each kind of stream.

The digests are bound to `ORDER_VERSION`. A run of a version must continue with the same samples under a later release of the same
version, so a change that moves a digest needs a new version:

    python -m tests.golden.order

adds the digests of a new version to digests/order.json. The command refuses to replace the digests of a version.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skillshard.canonical import digest, to_json
from skillshard.keyed_random import keyed_words, permutation
from skillshard.mixing import order, skill_order
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import curriculum, fixed, proportional
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from tests.conftest import HERE, tag_and_shard, write_corpus
from tests.tokenizers_trained import EOS, letter_tokenizer, letters

DIGESTS = Path(__file__).parent / "digests" / "order.json"
SHARD_ROWS = (3000, 1, 5000, 1024, 2049, 1025)
"""Shards below, at and above the 1,024 rows of a stripe. The largest shard has five stripes."""
NUM_SAMPLES = {"add": 5000, "carry": 2600, "negate": 700}
ROUND_DRAWS = 1500
BEYOND = 10 * sum(NUM_SAMPLES.values())
"""Number of draws beyond the end of every stream that ends."""
WEIGHTS = {"add": 0.5, "carry": 0.3, "negate": 0.2}


def of_numbers(arrays: Iterable[np.ndarray]) -> str:
    """Digest arrays of integers in order, with their lengths, to the same bytes on every platform."""
    joined = [part for array in arrays for part in (np.array([array.size]), array.ravel())]
    return digest(np.concatenate(joined).astype("<i8").tobytes())


# --- pure functions ---------------------------------------------------------------------------------------------------


def words() -> str:
    labels: list[tuple[str | int, ...]] = [("a",), ("a", 0), ("é", 2**40, "b"), (0,)]
    return of_numbers(keyed_words(9, *each).astype(np.int64) for each in labels)


def permutations() -> str:
    return of_numbers(permutation(num, "golden", num) for num in (1, 2, 3, 1000, 1024, 1025))


def quotas_of_rounds() -> str:
    """Digest twenty rounds of changing weights, with the carry from round to round."""
    carry, arrays = np.zeros(3, np.int64), []
    for number in range(20):
        fixed_weights = order.fixed_point(np.array([1.0, 1 + number % 3, 3 + number]) / (5 + number % 3 + number))
        counts, carry = order.quotas(fixed_weights, carry, 97 + number)
        arrays += [counts, carry]
    return of_numbers(arrays)


def limited_quotas_of_rounds() -> str:
    """Digest rounds until four skills of different size are used up, with the carry from round to round."""
    left, carry, arrays = np.array([30, 200, 90, 500]), np.zeros(4, np.int64), []
    fixed_weights = order.fixed_point(np.array([0.1, 0.2, 0.3, 0.4]))
    while left.any():
        counts, carry = order.limited_quotas(fixed_weights, carry, 61, left)
        left = left - counts
        arrays += [counts, carry]
    return of_numbers(arrays)


def weights_over_draws() -> str:
    tokens = order.draw_weights(np.array([0.5, 0.3, 0.2]), np.array([10, 20, 40]), np.array([100, 300, 50]))
    return of_numbers([order.fixed_point(tokens), order.fixed_point(np.array([1.0, 1.0, 1.0]))])


def interleaved() -> str:
    rounds = [np.array([5, 1]), np.array([0, 700, 3, 297]), np.array([1500])]
    return of_numbers(part for seed, counts in enumerate(rounds) for part in order.interleave(counts, "round", seed, 7))


def skill_orders() -> str:
    """Digest three epochs of two skills with the same shards, read in stretches that end inside stripes."""
    arrays = []
    for labels in ((0, "add"), (1, "carry")):
        of_skill = skill_order.SkillOrder(np.array(SHARD_ROWS), labels)
        for start in range(0, 3 * sum(SHARD_ROWS), 1777):
            for shard, rows in of_skill.read(start, start + 1777).segments:
                arrays += [np.array([shard]), rows]
    return of_numbers(arrays)


# --- streams ----------------------------------------------------------------------------------------------------------


def corpus_shards(folder: Path) -> tuple[ShardSet, TokenSet]:
    """Write shards of several stripes without a holdout, and count the tokens."""
    records = [letters(skill, number, number % 13) for skill, num in NUM_SAMPLES.items() for number in range(num)]
    shards = tag_and_shard(write_corpus(folder / "corpus", records), folder, shard_bytes=3 << 20, holdout=0.0)
    return shards, write_tokens(shards, letter_tokenizer(), folder / "tokens", special_tokens=False, backend=HERE)


def rows_of_shards(shards: ShardSet) -> dict[str, list[int]]:
    return {skill: of_skill.shard_rows.tolist() for skill, of_skill in shards.train.items()}


def streams(shards: ShardSet, tokens: TokenSet, folder: Path) -> dict[str, str]:
    """Digest shard and row of every draw of each kind of stream. The content of a row does not concern the order."""
    place_of = {
        sample.id: (skill, number)
        for skill, of_skill in enumerate(shards.train.values())
        for number, sample in enumerate(of_skill)
    }

    def mixer(name: str, **arguments: Any) -> Mixer:
        policy = arguments.pop("policy", fixed(WEIGHTS))
        ledger = folder / "runs" / name
        return Mixer(shards, policy, ledger=ledger, round_draws=ROUND_DRAWS, **arguments)

    def of_ids(mixed: Mixer, first: int, num: int) -> str:
        return of_numbers([np.array([place_of[identity] for identity in mixed.ids(first, num)])])

    def of_blocks(mixed: Mixer, first: int, num: int) -> str:
        packed = PackedTokens(mixed, tokens, block_tokens=64, separator=EOS)
        batch = packed.batch(first, num)
        return of_numbers([batch.draw, batch.input_ids, batch.skill_tokens])

    in_tokens: dict[str, Any] = {"unit": "tokens", "tokens": tokens}
    losses = {"add": 1.0, "carry": 2.0, "negate": 3.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skills? .* pass(es)? 4 epochs")
        return {
            "changing weights": of_ids(mixer("changing", policy=curriculum(losses, draws=6000)), 0, 4500),
            "repeat=epochs": of_ids(mixer("epochs"), 6000, 4500),
            "repeat=epochs, seed=1": of_ids(mixer("seed", seed=1), 0, 1500),
            "repeat=stop": of_ids(mixer("stop", repeat="stop"), 0, BEYOND),
            "repeat=drop": of_ids(mixer("drop", repeat="drop"), 3000, BEYOND),
            "repeat=cap:2": of_ids(mixer("cap", repeat="cap:2"), 12000, BEYOND),
            "unit=tokens": of_ids(mixer("tokens", policy=proportional(), **in_tokens), 0, 4500),
            "packed": of_blocks(mixer("packed"), 0, 600),
            "packed, unit=tokens, repeat=drop": of_blocks(mixer("packed-drop", repeat="drop", **in_tokens), 600, 2000),
        }


def order_digests(folder: Path) -> dict[str, Any]:
    """Compute every digest of the order, with the numbers of rows that the digests of streams are bound to."""
    shards, tokens = corpus_shards(folder)
    return {
        "shard_rows": rows_of_shards(shards),
        "functions": {
            "keyed_words": words(),
            "permutation": permutations(),
            "quotas": quotas_of_rounds(),
            "limited_quotas": limited_quotas_of_rounds(),
            "draw_weights": weights_over_draws(),
            "interleave": interleaved(),
            "SkillOrder": skill_orders(),
        },
        "streams": streams(shards, tokens, folder),
    }


# --- the committed digests --------------------------------------------------------------------------------------------


def committed() -> dict[str, Any]:
    """Return the digests of each version of the order."""
    digests: dict[str, Any] = json.loads(DIGESTS.read_text())
    return digests


def fault(known: Mapping[str, Any], version: str, digests: Mapping[str, Any]) -> str | None:
    """Return the fault of the digests of a version, and the remedy, or None if the digests are the committed digests."""
    if version not in known:
        return f"no digests of {version} are committed: run 'python -m tests.golden.order', and say in the changelog that old runs end."
    expected = known[version]
    if digests["shard_rows"] != expected["shard_rows"]:
        return (
            f"the generated shards have {digests['shard_rows']} rows, not {expected['shard_rows']}: shards are cut otherwise than when the "
            "digests were made, which is not a change of the order. Give the test shards of the same numbers of rows."
        )
    kinds = ("functions", "streams")
    moved = [name for kind in kinds for name, value in expected[kind].items() if digests[kind].get(name) != value]
    if moved:
        return (
            f"the order changed under version {version} ({', '.join(moved)}): every run that is resumed would get other samples. Undo "
            "the change, or raise ORDER_VERSION and run 'python -m tests.golden.order'."
        )
    return None


def main() -> int:
    """Add the digests of a new version."""
    known = committed() if DIGESTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        digests = order_digests(Path(folder))
    if order.ORDER_VERSION in known:
        problem = fault(known, order.ORDER_VERSION, digests)
        sys.stdout.write((problem or f"{DIGESTS} holds {order.ORDER_VERSION} as it is.") + "\n")
        return 0 if problem is None else 1
    DIGESTS.write_bytes(to_json(known | {order.ORDER_VERSION: digests}))
    sys.stdout.write(f"{DIGESTS} holds {order.ORDER_VERSION} now.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
