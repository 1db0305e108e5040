"""Names of metrics: every logger accepts the names, and different skills have different names."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from skillshard.mixing.metrics import LONGEST, metric_skill

NAMES = st.text(max_size=60) | st.text(alphabet="a/.é2EF-_", max_size=12)


@given(NAMES, NAMES)
@example("a.b", "a/b")
@example("a..2Fb", "a//b")
@example("a\0b", "a.b")
@example("", ".")
@example("", "..empty")
@example("x" * LONGEST, "x" * (LONGEST + 1))
@example("y" * 300 + "1", "y" * 300 + "2")
def test_different_skills_have_different_names(first: str, second: str) -> None:
    assert (metric_skill(first) == metric_skill(second)) == (first == second)


@given(NAMES)
@example("/")
@example("..")
@example("数学" * 40)
def test_a_name_has_only_characters_that_all_loggers_take(skill: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,160}", metric_skill(skill))
    # MLflow refuses names that a path would shorten.
    assert metric_skill(skill) not in (".", "..")


@given(NAMES)
def test_a_short_name_can_be_read_back(skill: str) -> None:
    name = metric_skill(skill)
    if skill and "..." not in name:
        parts = re.findall(r"\.\.([0-9A-F]{2})|(\.)|([A-Za-z0-9_-])", name)
        read = b"".join(bytes.fromhex(code) if code else b"/" if dot else plain.encode() for code, dot, plain in parts)
        assert read.decode("utf-8", "surrogatepass") == skill
