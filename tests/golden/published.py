"""Read the numbers of other authors for the golden tests. `data/README.md` gives the source of each file."""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")


def golden(name: str) -> Any:
    return json.loads((DATA / name).read_text())
