"""The exports of `skillshard`. README, documents and examples use nothing else."""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import skillshard
from tests.conftest import REPOSITORY

PUBLIC_NAMES = [
    "Backend",
    "Batch",
    "BatchLosses",
    "Compute",
    "Corpus",
    "EdgeRule",
    "EvalBudget",
    "FieldMapping",
    "Loss",
    "LossKind",
    "Losses",
    "Mixer",
    "Observation",
    "PackedBatch",
    "PackedTokens",
    "ReadingChoice",
    "Sample",
    "ShardSet",
    "SkillGraph",
    "SkillshardError",
    "Tags",
    "TokenSet",
    "append_shards",
    "check_policy",
    "errors",
    "export_shards",
    "ids_of_text",
    "learn_graph",
    "losses_from_batch",
    "losses_per_skill",
    "needed",
    "open_recorded",
    "open_recorded_chain",
    "policies",
    "read_policy",
    "regroup_tags",
    "replay",
    "replay_chain",
    "tag_corpus",
    "taggers",
    "verify",
    "write_shards",
    "write_tokens",
]
PUBLIC_MODULES = {
    "skillshard",
    "skillshard.errors",
    "skillshard.grain",
    "skillshard.hf",
    "skillshard.lightning",
    "skillshard.policies",
    "skillshard.taggers",
    "skillshard.torch",
    "skillshard.webdataset",
}
ADAPTERS = ("skillshard.grain", "skillshard.hf", "skillshard.lightning", "skillshard.torch", "skillshard.webdataset")
DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted(
        {*(REPOSITORY / "docs").rglob("*.md")}
        - {REPOSITORY / "docs" / "LOG.md", *(REPOSITORY / "docs" / "contributing").glob("*.md")}
    ),
]
"""The log is left out, because an entry names the modules of its day. The pages for contributors show code of the package itself."""
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def python_in(path: Path) -> str:
    text = path.read_text()
    return text if path.suffix == ".py" else "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S))


def used_in(code: str) -> Iterator[tuple[str, str]]:
    """Return the modules of skillshard that code imports, with the names that the code takes from each module."""
    aliases = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules = [name for name in node.names if name.name.split(".")[0] == "skillshard"]
            aliases.update({name.asname or name.name: name.name for name in modules})
            yield from ((name.name, "") for name in modules)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "skillshard":
            yield from ((str(node.module), name.name) for name in node.names)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield aliases[node.value.id], node.attr


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(skillshard.__all__) == PUBLIC_NAMES == skillshard.__all__
    assert sorted(dir(skillshard)) == sorted([*PUBLIC_NAMES, "__version__"])


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_is_what_its_name_says(name: str) -> None:
    assert getattr(skillshard, name).__name__.removeprefix("skillshard.") == name


def test_a_public_function_is_not_hidden_by_a_module_of_its_name() -> None:
    modules = {path.stem for path in (REPOSITORY / "skillshard").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(PUBLIC_NAMES) == {"errors", "policies", "taggers"}


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_documents_and_examples_use_public_names_only(path: Path) -> None:
    used = set(used_in(python_in(path)))
    assert bool(used) or path.suffix == ".md"
    assert {module for module, _ in used} <= PUBLIC_MODULES
    assert {name for module, name in used if module == "skillshard" and name} <= set(PUBLIC_NAMES)
    named = set(re.findall(r"`skillshard\.(\w+)", path.read_text())) if path.suffix == ".md" else set()
    adapters = {module.partition(".")[2] for module in PUBLIC_MODULES if "." in module}
    assert named <= {*PUBLIC_NAMES, *adapters}


def test_an_unknown_name_is_refused_with_its_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'skillshard' has no attribute 'Mixr'$"):
        skillshard.Mixr  # noqa: B018


def test_looking_at_the_names_imports_nothing() -> None:
    code = "import sys, skillshard; dir(skillshard); skillshard.__version__; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ray", "numpy", "pyarrow", "rich"}.isdisjoint(ended.stdout.split())


def arguments_of(docstring: str) -> list[str]:
    """Return the names that the section on arguments lists."""
    section = re.search(r"^( *)Args:\n((?:\1 +\S.*\n?|\n)+)", docstring, flags=re.M)
    return (
        re.findall(r"^    ([^\s:][^:\n]*):", textwrap.dedent(section[2]).replace("\n", "\n    "), flags=re.M)
        if section
        else []
    )


def sources() -> list[Path]:
    """Return the files that define public names."""
    homes = {*skillshard._HOMES.values()} - {"skillshard"}
    places = [REPOSITORY.joinpath(*home.split(".")) for home in [*homes, *ADAPTERS]]
    files = [path.with_suffix(".py") for path in places if path.with_suffix(".py").exists()]
    return sorted({*files, *(REPOSITORY / "skillshard" / "policies").glob("*.py")})


def parameters_of(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """Return the names that a call may give: for a class the arguments of `__init__` or the annotated fields."""
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    fields = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    function = node if isinstance(node, ast.FunctionDef) else functions[0] if functions else None
    if function is None:
        return fields
    return {argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}


def test_the_docstrings_of_public_names_list_arguments_that_exist() -> None:
    num_arguments = 0
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                listed = arguments_of((ast.get_docstring(node) or "") + "\n")
                num_arguments += len(listed)
                assert set(listed) <= parameters_of(node), f"{path.name}: {node.name}"
    assert num_arguments > 150
