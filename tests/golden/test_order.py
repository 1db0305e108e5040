"""The order of the stream is the committed order, and cannot change under a version."""

import copy
from pathlib import Path
from typing import Any

import pytest

from skillshard import keyed_random
from skillshard.mixing import order as product
from skillshard.mixing import skill_order
from skillshard.mixing.order import ORDER_VERSION
from skillshard.mixing.skill_order import STRIPE_ROWS
from tests.golden import order


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return order.order_digests(tmp_path_factory.mktemp("order"))


def test_the_order_is_the_committed_one_of_its_version(digests: dict[str, Any]) -> None:
    assert order.fault(order.committed(), ORDER_VERSION, digests) is None


def test_the_generated_shards_have_several_stripes(digests: dict[str, Any]) -> None:
    """Shards of a single stripe would hide the order of the stripes."""
    several = [rows for rows in digests["shard_rows"].values() if len(rows) > 1 and max(rows) > STRIPE_ROWS]
    assert len(several) >= 2


def test_an_order_that_changes_under_its_version_is_a_fault(digests: dict[str, Any]) -> None:
    changed = copy.deepcopy(digests)
    changed["functions"]["SkillOrder"] = changed["streams"]["packed"] = "0" * 32
    message = order.fault(order.committed(), ORDER_VERSION, changed)
    assert message is not None and message.startswith(
        f"the order changed under version {ORDER_VERSION} (SkillOrder, packed)"
    )


def test_a_version_without_digests_is_a_fault(digests: dict[str, Any]) -> None:
    message = order.fault(order.committed(), "order/next", digests)
    assert message is not None and message.startswith("no digests of order/next are committed")


def test_two_versions_never_have_the_same_order() -> None:
    known = list(order.committed().values())
    assert all(version != earlier for number, version in enumerate(known) for earlier in known[:number])


@pytest.mark.parametrize(
    ("module", "name", "value", "moved"),
    [
        (skill_order, "STRIPE_ROWS", 512, order.skill_orders),
        (
            skill_order,
            "permutation",
            lambda num, *labels: keyed_random.keyed_words(num, *labels).argsort()[::-1],
            order.skill_orders,
        ),
        (
            product,
            "keyed_words",
            lambda num, *labels: keyed_random.keyed_words(num, *labels, "another"),
            order.interleaved,
        ),
    ],
    ids=["blocks of other size", "another permutation of rows", "another jitter"],
)
def test_the_digests_move_with_the_code(
    module: Any, name: str, value: Any, moved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = moved()
    monkeypatch.setattr(module, name, value)
    assert moved() != before


def test_the_command_refuses_to_replace_the_digests_of_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(order, "DIGESTS", tmp_path / "order.json")
    monkeypatch.setattr(
        order, "order_digests", lambda folder: {"shard_rows": {}, "functions": {"a": "1"}, "streams": {}}
    )
    assert order.main() == 0 and order.main() == 0
    before = order.DIGESTS.read_bytes()
    monkeypatch.setattr(
        order, "order_digests", lambda folder: {"shard_rows": {}, "functions": {"a": "2"}, "streams": {}}
    )
    assert order.main() == 1
    assert "raise ORDER_VERSION" in capsys.readouterr().out
    assert order.DIGESTS.read_bytes() == before
    monkeypatch.setattr(product, "ORDER_VERSION", "order/next")
    assert order.main() == 0
    assert set(order.committed()) == {ORDER_VERSION, "order/next"}
