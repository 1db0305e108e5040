"""How many faults the near tests notice: mutants of the core, each tested by the tests that stand nearest to its file.

    pip install -e '.[all,test]' cosmic-ray
    python benchmarks/mutants.py --folder /tmp/mutants --out benchmarks/results/mutants.jsonl [--files skillshard/policies/] [--minutes 40]

Cosmic Ray's operators say what can be changed. Of all changes, those of the lowest keyed hash of file, line, operator and column are taken,
so the choice is the same on every machine, and a larger number only adds to it. Annotations are not mutated, nor is `==` to `is`, which for
small numbers depends on the interpreter. A mutant is killed when a test fails or the time is up.

The tests run in a copy of the repository under --folder. A process that has imported the heavy packages once is forked for each mutant,
without the checks of array shapes at first: a mutant that survives is tested again with them. Results are appended to --out line by line,
so a command that was stopped goes on. `--show` prints the score of a file of results and its survivors.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
KEY = "mutants/1"
PASSED = 0
STREAM = ["tests/unit/test_stream_state.py", "tests/property/test_mixer.py", "tests/property/test_lag.py"]
LEDGER = ["tests/unit/test_ledger.py", *STREAM, "tests/golden/test_algorithm_1.py", "tests/property/test_repetition.py"]
SHARDS = ["tests/contract/test_shards_are_webdataset.py", "tests/golden/test_artefacts.py"]
SPLIT = ["tests/property/test_holdout.py", "tests/contract/test_copies.py", *SHARDS]
POLICIES = [
    "tests/contract/test_policies.py",
    "tests/golden/test_policies.py",
    "tests/golden/test_skill_it.py",
    "tests/unit/test_priors.py",
    "tests/property/test_policies_in_the_mixer.py",
]
NEAR = {
    "skillshard/mixing/order.py": [
        "tests/property/test_order.py",
        "tests/property/test_repetition.py",
        "tests/golden/test_order.py",
    ],
    "skillshard/mixing/packing.py": [
        "tests/property/test_packing.py",
        "tests/unit/test_stream_state.py",
        "tests/adapters/test_masked_prompts.py",
    ],
    "skillshard/mixing/round_plan.py": [
        *STREAM,
        "tests/property/test_cut_texts.py",
        "tests/adapters/test_masked_prompts.py",
    ],
    "skillshard/mixing/finished.py": ["tests/unit/test_fitting.py", "tests/unit/test_demo.py"],
    "skillshard/mixing/listing.py": ["tests/contract/test_bad_input.py"],
    "skillshard/mixing/": [*LEDGER, "tests/unit/test_tokens.py", "tests/unit/test_ledger_believes_nothing.py"],
    "skillshard/shards/cache.py": ["tests/remote/test_cache.py"],
    "skillshard/shards/tokens.py": ["tests/unit/test_tokens.py", "tests/golden/test_artefacts.py"],
    "skillshard/shards/manifest.py": ["tests/contract/test_manifests.py", *SHARDS],
    "skillshard/shards/read.py": [
        "tests/fault/test_damaged_shards.py",
        "tests/property/test_chosen_skills.py",
        "tests/contract/test_manifests.py",
        *SHARDS,
    ],
    "skillshard/shards/tar.py": ["tests/fault/test_damaged_shards.py", *SHARDS],
    "skillshard/shards/": SPLIT,
    "skillshard/policies/loss_order.py": ["tests/unit/test_loss_order.py", *POLICIES],
    "skillshard/policies/graph_refresh.py": ["tests/unit/test_graph_refresh.py", *POLICIES],
    "skillshard/policies/": POLICIES,
    "skillshard/graph/edges.py": ["tests/property/test_graph_edges.py", "tests/golden/test_artefacts.py"],
}
"""File, or beginning of its path -> the tests nearest to it; the first that fits. The file's own doctests come before them."""
HEAVY = (
    "numpy",
    "pyarrow",
    "pyarrow.parquet",
    "pydantic",
    "orjson",
    "hypothesis",
    "beartype",
    "jaxtyping",
    "xxhash",
    "pytest",
)
IN_A_PROCESS = ("torch", "scipy.stats", "tokenizers")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: path in the repository.
        line, column: where the change begins.
        operator: Cosmic Ray's name of the change.
        occurrence: number of the operator's place in the file.
    """

    file: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.operator}"

    @property
    def rank(self) -> str:
        return hashlib.blake2b(f"{KEY}/{self.name}".encode(), digest_size=8).hexdigest()


def near(file: str) -> list[str]:
    """The tests of a file: its own doctests first."""
    tests = next(tests for begin, tests in NEAR.items() if file.startswith(begin))
    return [file, *tests]


def files() -> list[str]:
    """The files that are mutated."""
    folders = [REPOSITORY / "skillshard" / name for name in ("mixing", "shards", "policies")]
    paths = [path for folder in folders for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    return [str(path.relative_to(REPOSITORY)) for path in [*paths, REPOSITORY / "skillshard" / "graph" / "edges.py"]]


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of each annotation, as line and column."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in found if node
    ]


def mutants(file: str) -> Iterator[Mutant]:
    """Every change of a file that Cosmic Ray's operators without arguments can make."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    spans = annotations((REPOSITORY / file).read_text())
    nodes = list(ast_nodes(get_ast_from_path(REPOSITORY / file)))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name.endswith(("_Is", "_IsNot")):
            continue
        made = operator()
        places = (begin for node in nodes for begin, _ in made.mutation_positions(node))
        for occurrence, begin in enumerate(places):
            if not any(first <= begin < last for first, last in spans):
                yield Mutant(file, *begin, name, occurrence)


def chosen(number: int) -> list[Mutant]:
    """The mutants of the lowest rank; of one place and operator the first alone."""
    every = {mutant.name: mutant for file in files() for mutant in reversed(list(mutants(file)))}
    return sorted(every.values(), key=lambda mutant: mutant.rank)[:number]


def mutated(mutant: Mutant) -> str:
    """The source of the changed file."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = mutate_code((REPOSITORY / mutant.file).read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    assert source is not None, mutant
    return source


def copy_repository(folder: Path) -> None:
    """The files that git tracks, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)


def outcome(folder: Path, tests: Sequence[str], *, shapes: bool, timeout_s: float) -> tuple[str, str]:
    """What the tests say in a process of their own: "survived", "killed" or "timeout", and the failing test.

    Args:
        shapes: whether the shapes and types of arrays are checked, which takes several times as long.
    """
    report = folder / "report.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(report, os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(_run_tests(folder, tests, shapes=shapes))
    end = time.monotonic() + timeout_s
    while (waited := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", ""
        time.sleep(0.05)
    lines = report.read_text(errors="replace").splitlines()
    first = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "")
    return ("survived", "") if os.waitstatus_to_exitcode(waited[1]) == PASSED else ("killed", first[:200])


def _run_tests(folder: Path, tests: Sequence[str], *, shapes: bool) -> int:
    import hypothesis
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    hypothesis.settings.register_profile("mutants", deadline=None, database=None)
    hypothesis.settings.load_profile("mutants")
    options = ["--doctest-modules", "--import-mode=importlib", "--strict-markers"]
    options += ["--jaxtyping-packages=skillshard,beartype.beartype"] if shapes else []
    without = ["-o", "addopts=", "-p", "no:cacheprovider", "-x", "-q", "--hypothesis-seed=0", "--no-header"]
    without += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the packages that were imported before the fork
    return int(pytest.main([*without, *options, *tests]))


def test_mutant(folder: Path, mutant: Mutant, timeout_s: float) -> dict[str, object]:
    """The record of a mutant."""
    place, before = folder / mutant.file, (REPOSITORY / mutant.file).read_text()
    started = time.monotonic()
    after = mutated(mutant)
    place.write_text(after)
    try:
        for shapes in (False, True):
            found, by = outcome(folder, near(mutant.file), shapes=shapes, timeout_s=timeout_s)
            if found != "survived":
                break
    finally:
        place.write_text(before)
    changes = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=False) if pair[0] != pair[1]]
    return {
        "mutant": mutant.name,
        "outcome": found,
        "by": by,
        "seconds": round(time.monotonic() - started, 1),
        "before": changes[0][0].strip() if changes else "",
        "after": changes[0][1].strip() if changes else "",
    }


def show(results: Path) -> None:
    """Print the score, by folder, and the survivors."""
    records = [json.loads(line) for line in results.read_text().splitlines()]
    parts: dict[str, list[bool]] = {}
    for record in records:
        folder = "/".join(record["mutant"].split(":")[0].split("/")[:2])
        parts.setdefault(folder, []).append(record["outcome"] != "survived")
        parts.setdefault("all", []).append(record["outcome"] != "survived")
    for folder, killed in sorted(parts.items()):
        print(f"{folder}: {sum(killed)} of {len(killed)} killed ({sum(killed) / len(killed):.0%})")
    for record in records:
        if record["outcome"] == "survived":
            print(f"survived: {record['mutant']}\n    - {record['before']}\n    + {record['after']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the copy of the repository is made")
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON line for each mutant")
    parser.add_argument("--number", type=int, default=300, help="number of mutants")
    parser.add_argument("--files", default="skillshard/", help="test those of the chosen mutants whose file begins so")
    parser.add_argument("--minutes", type=float, default=10_000.0, help="begin no mutant after so many minutes")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a mutant counts as killed")
    parser.add_argument("--show", action="store_true", help="print the score of --out and end")
    asked = parser.parse_args()
    if asked.show:
        return show(asked.out)
    if asked.folder is None:
        parser.error("--folder is needed")
    end = time.monotonic() + 60 * asked.minutes
    copy_repository(asked.folder)
    for name in HEAVY + IN_A_PROCESS:
        __import__(name)
    done = {json.loads(line)["mutant"] for line in asked.out.read_text().splitlines()} if asked.out.exists() else set()
    sound: dict[str, bool] = {}
    for mutant in chosen(asked.number):
        if mutant.name in done or not mutant.file.startswith(asked.files) or time.monotonic() > end:
            continue
        if mutant.file not in sound:
            found, by = outcome(asked.folder, near(mutant.file), shapes=False, timeout_s=asked.timeout)
            sound[mutant.file] = found == "survived"
            if not sound[mutant.file]:
                print(
                    f"the tests of {mutant.file} do not pass without a mutant ({found} {by}): its mutants wait",
                    flush=True,
                )
        if not sound[mutant.file]:
            continue
        record = test_mutant(asked.folder, mutant, asked.timeout)
        print(f"{record['outcome']} {record['mutant']} ({record['seconds']} s) {record['by']}", flush=True)
        with asked.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return show(asked.out)


if __name__ == "__main__":
    main()
