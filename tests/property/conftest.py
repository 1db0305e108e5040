"""Shards with token sets for the tests of packings."""

import pytest

from tests.property.packed_streams import Counted
from tests.tokenizers_trained import counted, uneven_shards


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    folder = tmp_path_factory.mktemp("uneven")
    shards = uneven_shards(folder)
    return Counted(shards, counted(shards, folder / "T"), counted(shards, folder / "S", special_tokens=True))
