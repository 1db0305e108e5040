"""An installation without extras does the core of the work, and every other feature names its extra."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from skillshard.cli import app
from skillshard.errors import ExtraError, SkillshardError
from skillshard.extras import MODULES, needed
from tests.conftest import REPOSITORY
from tests.unit.bare import IMPORTS, NEEDS, WORKS

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"all", "docs", "test"}

SENTENCES = {
    "tag embedding C --skills 2 --out X": "The encoder 'lexical' needs the extra 'cluster'",
    "tag embedding C --skills 2 --encoder all-MiniLM-L6-v2 --out X": (
        "A sentence-transformers model as the encoder needs the extra 'embed'"
    ),
    "tag loss C --skills 2 --out X": "Training small models needs the extra 'proxy'",
    "tag metadata C --field meta.skill --ray-address local --out X": "--ray-address local needs the extra 'ray'",
    "tag metadata hf:openai/gsm8k/main --field x --out X": "The address hf:openai/gsm8k/main needs the extra 'datasets'",
    "tag metadata C --field meta.skill --out s3://bucket/X": "Writing to s3:// needs the extra 'stores'",
    "tag classifier C --model C --out X": "A classifier needs the extra 'hf'",
    "shard C --tags T --ray-address local --out X": "--ray-address local needs the extra 'ray'",
    "inspect T --against meta.skill": "--against needs the extra 'cluster'",
    "inspect T --pictures X": "--pictures needs the extras 'cluster' and 'plots'",
    "graph learn S --steps 2 --out X/graph.json": "Training small models needs the extra 'proxy'",
    "graph show graph.json --pictures X": "--pictures needs the extra 'plots'",
    "compare S --policy stratified --policy loss_order:eta=1 --seeds 2 --steps 2 --out X": "A comparison needs the extras 'proxy' and 'plots'",
    "compare run run2 --baseline run --out X": "A comparison needs the extras 'proxy' and 'plots'",
    "fit runs.csv --out X/fit.json": "--method log-linear needs the extra 'fit'",
    "fit runs.csv --method regmix --out X/fit.json": "--method regmix needs the extra 'regmix'",
    "tokens S --tokenizer tokenizer.json --out X": "A tokenizer needs the extra 'tokens'",
    "demo --out X": "skillshard demo needs the extras 'proxy' and 'plots'",
    "skillshard.torch": "skillshard.torch needs the extra 'torch'",
    "skillshard.hf": "skillshard.hf needs the extra 'hf'",
    "skillshard.lightning": "skillshard.lightning needs the extra 'lightning'",
    "skillshard.webdataset": "skillshard.webdataset needs the extra 'webdataset'",
    "skillshard.proxy.model": "Training small models needs the extra 'proxy'",
}


def heavy_modules() -> set[str]:
    return {module for modules in MODULES.values() for module in modules}


def check(outcomes: dict[str, list[object]]) -> None:
    """Compare the output of `bare.py` with the expected outcome of each command."""
    for command in WORKS:
        code, last_line = outcomes[command]
        assert code == 0, f"{command}: {last_line}"
    for name in (*NEEDS, *IMPORTS):
        code, last_line = outcomes[name]
        extras = ",".join(re.findall(r"'(\w+)'", SENTENCES[name].split(" needs the extra")[1]))
        sentence = f"{SENTENCES[name]}: pip install 'skillshard[{extras}]'"
        assert (code, str(last_line).removeprefix("error: ")) == (1, sentence), name


def run_bare(interpreter: str | Path, folder: Path, *blocked: str) -> dict[str, list[object]]:
    folder.mkdir()
    ended = subprocess.run(
        [str(interpreter), str(REPOSITORY / "tests" / "unit" / "bare.py"), str(folder), *blocked],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_without_extras_the_core_works_and_everything_else_names_its_extra(tmp_path: Path) -> None:
    check(run_bare(sys.executable, tmp_path / "here", *heavy_modules(), "beartype", "pandas"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_installation_without_extras_does_the_core_and_names_the_extras(tmp_path: Path) -> None:
    """The same commands run in a virtual environment into which pip installed nothing but skillshard."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    pip = [str(interpreter), "-m", "pip"]
    small = [*pip, "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "wadler-lindig"]
    if subprocess.run(small, capture_output=True, timeout=300).returncode:
        pytest.skip("no package index is reachable; the test with blocked modules runs everywhere")
    command = [*pip, "install", "--quiet", "--no-compile", str(REPOSITORY)]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, check=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert names.isdisjoint({"torch", "ray", "scipy", "scikit-learn", "matplotlib", "sentence-transformers"})
    check(run_bare(interpreter, tmp_path / "here"))


def test_every_verb_is_tried_without_extras() -> None:
    tried = {command.split()[0] for command in (*WORKS, *NEEDS)}
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert tried == verbs | {str(group.name) for group in app.registered_groups}


@pytest.mark.parametrize("name", sorted((REPOSITORY / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_without_its_extra_names_it(name: Path) -> None:
    blocked = ", ".join(repr(module) for module in sorted(heavy_modules()))
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); from tests.unit.bare import Blocked; "
        f"sys.meta_path.insert(0, Blocked([{blocked}])); runpy.run_path({str(name)!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    if name.name == "plain_numpy.py":
        assert ended.returncode == 0, ended.stderr
    else:
        sentence = rf"ExtraError: examples/{name.name} needs the extras? '.*': pip install 'skillshard\[[a-z,]+\]'"
        assert re.fullmatch(rf"skillshard\.errors\.{sentence}", ended.stderr.splitlines()[-1]), ended.stderr


def test_the_sentence_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExtraError) as caught:
        needed("proxy", "fit", "plots", what="This")
    assert str(caught.value) == "This needs the extras 'proxy' and 'plots': pip install 'skillshard[proxy,plots]'"
    assert isinstance(caught.value, SkillshardError) and isinstance(caught.value, ImportError)


def distributions_of(extra: str) -> set[str]:
    """Return the normalized names of the packages that an extra installs directly, or through other extras of skillshard."""
    names: set[str] = set()
    for requirement in EXTRAS[extra]:
        name = re.split(r"[\[<>=~!; ]", requirement)[0].lower().replace("_", "-")
        inner = re.search(r"\[(.*?)\]", requirement)
        if name == "skillshard" and inner:
            names = names.union(*(distributions_of(part) for part in inner[1].split(",")))
        else:
            names.add(name)
    return names


def test_the_extras_install_the_modules_that_are_asked_for() -> None:
    assert set(MODULES) == set(EXTRAS) - FOR_DEVELOPERS
    distributions = packages_distributions()
    for extra, modules in MODULES.items():
        expected = {name.lower().replace("_", "-") for module in modules for name in distributions[module]}
        assert distributions_of(extra) == expected, extra


def required_by(distributions: set[str]) -> set[str]:
    """Return the normalized names of distributions and of everything that they require without an extra."""
    known: set[str] = set()
    waiting = [*distributions]
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        try:
            requirements = requires(name) or []
        except PackageNotFoundError:  # of another system
            continue
        outside_extras = [requirement for requirement in requirements if "extra ==" not in requirement]
        waiting += [re.split(r"[\[<>=~!; (]", line)[0].lower().replace("_", "-") for line in outside_extras]
    return known


OF_EXTRA = [
    ("torch", "skillshard.torch"),
    ("torch", "skillshard.batch_losses"),
    ("hf", "skillshard.hf"),
    ("hf", "skillshard.taggers.classifier"),
    ("hf", "skillshard.proxy.device"),  # the classifier computes on a device
    ("webdataset", "skillshard.webdataset"),
    ("grain", "skillshard.grain"),
    ("proxy", "skillshard.graph.learn"),
    ("proxy", "skillshard.taggers.losses.tagger"),
]
"""Extra, and a module that works with this extra alone."""


@pytest.mark.parametrize(("extra", "module"), OF_EXTRA, ids=lambda name: name)
def test_a_module_needs_no_more_than_its_extra(extra: str, module: str) -> None:
    # pyarrow and torchmetrics find these two by the installed distribution, so an entry None would stop them.
    installed = required_by(distributions_of(extra)) | {"pandas", "matplotlib"}
    distributions = packages_distributions()
    absent = [
        name
        for name in sorted(heavy_modules())
        if installed.isdisjoint(owner.lower().replace("_", "-") for owner in distributions[name])
    ]
    assert absent
    # An entry None is a module that is not installed, also for a package that only asks whether the module is installed.
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {module}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr


def test_all_brings_every_extra() -> None:
    assert distributions_of("all") == set().union(*(distributions_of(extra) for extra in MODULES))
    assert distributions_of("all") <= distributions_of("test")


def test_torch_has_no_upper_bound_where_users_install_it() -> None:
    (requirement,) = EXTRAS["torch"]
    assert re.fullmatch(r"torch>=[\d.]+", requirement)
    assert (REPOSITORY / ".ci" / "constraints.txt").read_text().count("torch<") == 1
