"""LEGO: the generated samples are right, mixed as requested, and the same every time."""

import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import CorpusError
from skillshard.synthetic.lego import lego_samples, natural_proportions, skill_names, write_lego
from skillshard.tags import Tags
from tests.commands import works


def solve(text: str) -> tuple[list[str], str, int]:
    """Return the chain's variables in chain order, the variable of the question and its value, by repeated look-up without assumptions."""
    body, question = re.fullmatch(r"Input: (.*)\. Output: (\w) = [01]\.", text).groups()  # type: ignore[union-attr]
    clauses = {name: (word, operand) for name, word, operand in (re.split(r" = | ", c) for c in body.split(", "))}
    follower = {operand: name for name, (_, operand) in clauses.items()}
    (given_value,) = set(follower) & {"0", "1"}
    chain, value, values = [follower[given_value]], int(given_value), {}
    while True:
        values[chain[-1]] = value
        if chain[-1] not in follower:
            return chain, question, values[question]
        chain.append(follower[chain[-1]])
        value = value if clauses[chain[-1]][0] == "val" else 1 - value


def clause_names(text: str) -> list[str]:
    return re.findall(r"(\w) = (?:val|not)", text)


def counts(samples: list[dict[str, Any]]) -> Mapping[str, int]:
    return Counter(sample["meta"]["skill"] for sample in samples)


@given(st.integers(1, 26), st.integers(0, 2**40), st.sampled_from(("shuffled", "chain")), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_every_answer_is_what_an_independent_solver_finds_and_the_skill_is_the_place_in_the_chain(k, seed, order, more):
    for sample in lego_samples(k=k, num_samples=k + more, seed=seed, order=order):
        chain, question, value = solve(sample["text"])
        assert len(set(chain)) == k
        assert sample["text"].endswith(f"{question} = {value}.")
        assert sample["meta"] == {"skill": skill_names(k)[chain.index(question)], "k": k, "order": order}


def test_clauses_in_chain_order_follow_the_chain_and_shuffled_ones_take_every_order():
    ordered = list(lego_samples(k=3, num_samples=300, seed=0, order="chain"))
    assert all(clause_names(s["text"]) == solve(s["text"])[0] for s in ordered)
    shuffled = list(lego_samples(k=3, num_samples=300, seed=0))
    orders = Counter(tuple(solve(s["text"])[0].index(n) for n in clause_names(s["text"])) for s in shuffled)
    assert set(orders) == set(itertools.permutations(range(3)))
    assert min(orders.values()) > 20


def test_letters_values_and_operators_are_evenly_spread():
    texts = [sample["text"] for sample in lego_samples(k=4, num_samples=8000, seed=3)]
    assert abs(np.mean([text.endswith("= 1.") for text in texts]) - 0.5) < 0.03
    letters = np.array([*Counter(name for text in texts for name in clause_names(text)).values()])
    assert len(letters) == 26
    assert letters.min() > 0.85 * letters.mean() and letters.max() < 1.15 * letters.mean()
    assert abs(np.mean([word == "not" for text in texts for word in re.findall(r"= (val|not)", text)]) - 3 / 8) < 0.02


@pytest.mark.parametrize(("k", "expected"), [(1, (5,)), (2, (3, 5)), (3, (1, 3, 5)), (5, (1, 1, 1, 3, 5))])
def test_natural_proportions_are_ones_then_three_and_five(k, expected):
    assert natural_proportions(k) == expected


@pytest.mark.parametrize(
    ("proportions", "expected"),
    [("natural", (10, 10, 30, 50)), ("uniform", (25, 25, 25, 25)), ((0, 1, 0, 3), (0, 25, 0, 75))],
)
def test_skills_are_as_frequent_as_asked(proportions, expected):
    num_samples = counts(list(lego_samples(k=4, num_samples=100, seed=0, proportions=proportions)))
    assert tuple(num_samples[name] for name in skill_names(4)) == expected


@given(st.lists(st.integers(0, 10**30) | st.integers(0, 1000), min_size=3, max_size=3).filter(any), st.integers(3, 200))
@settings(max_examples=40, deadline=None)
def test_counts_follow_any_proportions_to_within_one_sample(parts, num_samples):
    num_of = counts(list(lego_samples(k=3, num_samples=num_samples, seed=0, proportions=parts)))
    for name, part in zip(skill_names(3), parts, strict=True):
        assert abs(num_of[name] - Fraction(num_samples * part, sum(parts))) < 1


def test_skills_are_interleaved_and_ids_are_unique():
    samples = list(lego_samples(k=4, num_samples=2000, seed=0, proportions="uniform"))
    for start in range(0, 2000, 500):
        assert min(counts(samples[start : start + 500]).values()) > 80
    assert len({sample["id"] for sample in samples}) == 2000
    assert samples[123]["id"] == "lego-4-000123"


def test_equal_arguments_give_equal_bytes_and_another_seed_gives_others(tmp_path: Path):
    written = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        places = write_lego(tmp_path / name, k=5, num_samples=25, seed=seed, samples_per_file=10)
        assert [Path(place).name for place in places] == ["lego-00000.jsonl", "lego-00001.jsonl", "lego-00002.jsonl"]
        written[name] = b"".join(Path(place).read_bytes() for place in places)
    assert written["a"] == written["b"] != written["c"]
    lines = [json.loads(line) for line in written["a"].splitlines()]
    assert lines == list(lego_samples(k=5, num_samples=25, seed=7))


def test_the_bytes_of_a_seed_never_change():
    texts = [sample["text"] for sample in lego_samples(k=2, num_samples=3, seed=0)]
    assert texts == [
        "Input: h = val 0, k = val h. Output: k = 0.",
        "Input: f = val 0, l = not f. Output: l = 1.",
        "Input: t = not a, a = val 0. Output: a = 0.",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 0}, "k=0: a LEGO chain has 1 to 26 variables, one letter each. Give k between 1 and 26."),
        ({"k": 27}, "k=27: a LEGO chain has 1 to 26 variables, one letter each. Give k between 1 and 26."),
        ({"num_samples": 2}, "num_samples=2: 3 skills need at least 3 samples. Give 3 or more."),
        ({"seed": -1}, "seed=-1: a seed is a whole number from 0. Give another seed."),
        ({"order": "any"}, 'order=\'any\': clauses stand "shuffled" (as in the paper) or in "chain" order.'),
        ({"proportions": "even"}, 'proportions=\'even\': give "natural", "uniform" or 3 whole numbers.'),
        (
            {"proportions": (1, 1)},
            (
                "proportions=(1, 1): expected 3 whole numbers from 0, not all 0, a number for each skill. "
                "The paper has (1, 3, 5)."
            ),
        ),
        ({"proportions": (0, 0, 0)}, "proportions=(0, 0, 0): expected 3 whole numbers from 0, not all 0"),
        ({"proportions": (1, -1, 1)}, "proportions=(1, -1, 1): expected 3 whole numbers from 0"),
        ({"samples_per_file": 0}, "samples_per_file=0: a file holds at least 1 sample. Give 1 or more."),
    ],
)
def test_a_wrong_argument_stops_at_once_with_what_to_give(tmp_path: Path, arguments, sentence):
    with pytest.raises(CorpusError, match=re.escape(sentence)):
        write_lego(tmp_path, **({"k": 3, "num_samples": 9, "seed": 0} | arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("corpus", ["lego", "addition"])
def test_the_command_that_a_generated_corpus_prints_works_as_it_stands(tmp_path: Path, corpus: str) -> None:
    printed = works("synth", corpus, "--k", 3, "--samples", 50, "--out", tmp_path / "a corpus")
    program, *words = shlex.split(printed.partition("Tag the corpus:\n")[2])
    assert program == "skillshard"
    works(*words)
    assert Tags.open(tmp_path / "a corpus-tags").manifest.num_tagged == 50
