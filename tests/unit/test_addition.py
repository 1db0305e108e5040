"""Addition: the generated samples are right, mixed as requested, and the same every time."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import CorpusError
from skillshard.synthetic.addition import addition_samples, natural_proportions, write_addition
from tests.commands import skillshard, works


@given(k=st.integers(1, 9), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_every_answer_is_the_digit_of_the_sum_and_the_skill_is_its_place(k, seed):
    for sample in addition_samples(k=k, num_samples=k + 20, seed=seed):
        left, right, place, answer = re.fullmatch(
            r"Input: A = ([\d ]+) \+ ([\d ]+) , A (\d) = \? Output: (\d)", sample["text"]
        ).groups()  # type: ignore[union-attr]
        total = int(left.replace(" ", "")) + int(right.replace(" ", ""))
        assert total // 10 ** int(place) % 10 == int(answer)
        assert sample["meta"] == {"skill": f"skill-{int(place) + 1}", "k": k}
        assert len(left.split()) == len(right.split()) == k


def test_counts_follow_the_papers_proportions():
    samples = list(addition_samples(k=3, num_samples=450, seed=0))
    assert Counter(sample["meta"]["skill"] for sample in samples) == {"skill-1": 130, "skill-2": 140, "skill-3": 180}
    assert natural_proportions(4) == (1, 1, 1, 1)


def test_equal_arguments_give_equal_files_and_another_seed_other_texts(tmp_path: Path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_addition(tmp_path / out, k=3, num_samples=120, seed=seed, samples_per_file=50)
    files = {out: [path.read_bytes() for path in sorted((tmp_path / out).iterdir())] for out in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert [len(data.splitlines()) for data in files["a"]] == [50, 50, 20]


def test_the_command_writes_what_the_function_does(tmp_path: Path):
    works("synth", "addition", "--k", 2, "--samples", 30, "--out", tmp_path / "out", "--proportions", "1:2")
    lines = (tmp_path / "out" / "addition-00000.jsonl").read_text().splitlines()
    expected = addition_samples(k=2, num_samples=30, seed=0, proportions=(1, 2))
    assert [json.loads(line) for line in lines] == list(expected)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"k": 10}, "k=10: the numbers have 1 to 9 digits. Give k between 1 and 9."),
        ({"num_samples": 2}, "num_samples=2: 3 skills need at least 3 samples. Give 3 or more."),
        ({"seed": -1}, "seed=-1: a seed is a whole number from 0. Give another seed."),
        (
            {"proportions": (1, 2)},
            "proportions=(1, 2): expected 3 whole numbers from 0, not all 0, a number for each skill. The paper has (13, 14, 18).",
        ),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_sentence(changed, sentence):
    with pytest.raises(CorpusError) as error:
        addition_samples(**{"k": 3, "num_samples": 10, "seed": 0, **changed})
    assert str(error.value) == sentence


def test_the_command_refuses_the_same_arguments(tmp_path: Path):
    outcome = skillshard("synth", "addition", "--k", 3, "--samples", 2, "--out", tmp_path / "out")
    assert outcome.code == 1 and "3 skills need at least 3 samples" in outcome.sentence
