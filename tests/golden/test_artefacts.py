"""Artefacts of a small corpus are the committed artefacts, so that no written byte moves unseen."""

import pytest

from tests.golden import artefacts


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> artefacts.Artefacts:
    return artefacts.Artefacts(tmp_path_factory.mktemp("artefacts"))


@pytest.mark.parametrize("kind", artefacts.KINDS)
def test_the_artefact_is_the_committed_one(products: artefacts.Artefacts, kind: str) -> None:
    assert artefacts.KINDS[kind](products) == artefacts.committed().get(kind), (
        f"{kind}: the artefact changed. If it changed on purpose, run 'python -m tests.golden.artefacts', and say so in the changelog."
    )


def test_every_committed_digest_is_of_a_kind_that_is_made() -> None:
    assert set(artefacts.committed()) == set(artefacts.KINDS)
