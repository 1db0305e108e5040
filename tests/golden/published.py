"""Where the published numbers are; a test that needs them is skipped where they are not."""

import json
from typing import Any

import pytest

from tests.conftest import SHARED

GOLDEN = SHARED / "golden"


def golden(name: str) -> Any:
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine; this test's twin with numbers by hand runs everywhere")
    return json.loads(path.read_text())
