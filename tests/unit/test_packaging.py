"""The package: a single version, the files of its archives, the files that describe the project, and the platforms."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import skillshard
from skillshard.cli import app
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_version_stands_in_one_place_and_everything_agrees() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    source = REPOSITORY / PROJECT["tool"]["hatch"]["version"]["path"]
    assert re.findall(r'^__version__ = "(.*)"$', source.read_text(), flags=re.M) == [skillshard.__version__]
    assert CliRunner().invoke(app, ["--version"]).output == f"skillshard {skillshard.__version__}\n"
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == skillshard.__version__
    newest = re.findall(r"^## (\S+)", (REPOSITORY / "docs" / "CHANGELOG.md").read_text(), flags=re.M)[0]
    assert newest == skillshard.__version__


def test_the_citation_names_title_licence_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2307.14430"


def test_the_hooks_run_programs_that_the_test_extra_installs() -> None:
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    programs = {re.fullmatch(r"\.venv/bin/(\w+) .*", hook["entry"])[1] for hook in repository["hooks"]}
    installed = {re.split(r"[>=\[]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["test"]}
    assert programs == {"ruff", "mypy"} <= installed


def test_windows_is_refused_in_one_sentence() -> None:
    code = "import sys; sys.platform = 'win32'; import skillshard"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=REPOSITORY)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("ImportError: skillshard runs on Linux and macOS, not on Windows.")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist and the wheel of the tree."""
    for module in ("hatchling.build", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason=f"{module} is not installed; .ci/package builds too")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "import sys; from hatchling import build; print(build.build_sdist(sys.argv[1]), build.build_wheel(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    sdist, wheel = ended.stdout.split()
    return folder / sdist, folder / wheel


def test_the_description_of_the_package_links_to_no_file_of_a_checkout(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        _, _, description = archive.read(name).decode().partition("\n\n")
    code = re.compile(r"^```.*?^```$", flags=re.S | re.M)
    links = re.findall(r"\]\(([^)]*)\)", code.sub("", description))
    assert len(links) > 5 and all(link.startswith("https://") for link in links)
    readme = (REPOSITORY / "README.md").read_text()
    assert code.findall(description) == code.findall(readme)
    assert len(description) > 0.8 * len(readme)


def test_the_archives_hold_what_an_installation_needs_and_nothing_else(archives: tuple[Path, Path]) -> None:
    sdist, wheel = archives
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    packed = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "skillshard").rglob("*.py")}
    packed |= {"skillshard/py.typed", "skillshard/report/page.css", "skillshard/report/page.js"}
    beside = {"jobs", "schemas", "examples"}
    described = {
        ".gitignore",
        "CITATION.cff",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "docs/CHANGELOG.md",
        "pyproject.toml",
    }
    assert {name for name in names if name.partition("/")[0] not in beside} == packed | described
    assert {name.partition("/")[0] for name in names} >= beside
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == packed
    assert sdist.stat().st_size < 1_000_000
