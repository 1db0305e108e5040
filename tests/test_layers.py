"""Imports follow the data and never go back, and no two files need each other. The core imports neither torch nor ray."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LAYERS = [
    {"printable"},
    {"errors", "hash_ranges", "keyed_random", "merge_levels", "number_checks", "repeated_keys"},
    {"command", "extras", "opened"},
    {"memo", "progress", "stores", "web"},
    {"canonical", "places", "yaml_text"},
    {"uploads"},
    {"storage"},
    {"pool"},
    {"job_array", "ray_connection"},
    {"ray_pool"},
    {"bars"},
    {"execution"},
    {"artefact"},
    {"stages"},
    {"corpus", "synthetic"},
    {"collective", "loss"},
    {"answers"},
    {"tags"},
    {"proxy"},
    {"taggers"},
    {"shards"},
    {"graph"},
    {"policies"},
    {"mixing"},
    {"export", "export_files", "export_manifest", "export_rows", "fitting", "megatron"},
    {"endless_rows", "evaluation", "index_order", "refusals", "sent_batches", "stream_rows", "testing"},
    {"batch_losses", "grain", "loader_items", "ranks", "torch"},
    {"causal_lm", "hf", "lightning", "webdataset"},
    {"verification"},
    {"report"},
    {"comparison", "demo", "pipeline"},
    {"schemas"},
    {"cli"},
    {"__main__"},
    {"jobs"},
]
FILES = sorted([*(REPOSITORY / "skillshard").rglob("*.py"), *(REPOSITORY / "jobs").glob("*.py")])


def layer_of(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def home_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return "jobs" if parts[0] == "jobs" else parts[1]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_imports_only_from_its_own_layer_and_those_before(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "skillshard":
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "skillshard" and name != "skillshard.__version__":
            assert layer_of(parts[1]) <= layer_of(home_of(path)), f"{path} imports {name}"


def test_no_two_files_need_each_other() -> None:
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
    }

    def needed(path: Path) -> set[str]:
        names = set(imports_of(path))
        return {name if name in modules else name.rpartition(".")[0] for name in names} & set(modules)

    inner = {name: needed(path) for name, path in modules.items() if name != "skillshard"}
    order = [*TopologicalSorter(inner).static_order()]  # a CycleError names the files of a circle
    assert set(order) >= set(inner)


@pytest.mark.parametrize(
    "path", [path for path in FILES if "policies" in path.parts or path.name in ("order.py", "skill_order.py")]
)
def test_decisions_import_numpy_and_our_own_types_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names)
    # ADO refits its laws while training runs, with one thread.
    fits = {"scipy", "threadpoolctl"} if path.name in ("ado.py", "scaling_law.py") else set()
    assert outside <= {"numpy", "jaxtyping", "skillshard", "orjson"} | fits


def test_ray_is_imported_in_two_modules() -> None:
    assert {path.name for path in FILES if any(name.split(".")[0] == "ray" for name in imports_of(path))} == {
        "ray_connection.py",
        "ray_pool.py",
    }


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        (
            "import skillshard; skillshard.Mixer; skillshard.ShardSet; skillshard.policies; skillshard.tag_corpus; import skillshard.taggers",
            {"torch", "ray", "sklearn", "scipy", "sentence_transformers", "tokenizers"},
        ),
        ("import skillshard.cli", {"torch", "ray", "numpy", "pyarrow", "pydantic", "matplotlib"}),
        ("import skillshard.__main__", {"typer", "rich", "numpy"}),
    ],
)
def test_heavy_modules_are_imported_only_where_they_are_used(code: str, unwanted: set[str]) -> None:
    script = f"import sys; {code}; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert unwanted.isdisjoint(imported)
