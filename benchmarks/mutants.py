"""How many faults the near tests notice: mutants of the core, each tested by the tests that stand nearest to its file.

    pip install -e '.[all,test]' cosmic-ray
    python benchmarks/mutants.py --folder /tmp/mutants --out benchmarks/results/mutants.jsonl [--files skillshard/policies/] [--minutes 40]

Cosmic Ray's operators say what can be changed. Of all changes, those of the lowest keyed hash of file, line, operator and column are taken,
so the choice is the same on every machine, and a larger number only adds to it. Annotations are not mutated, nor is `==` to `is`, which for
small numbers depends on the interpreter. A change that Python cannot compile, or that only replaces the star of a signature, is no mutant:
each test would notice the first kind, and nobody the second.

Each file of tests is timed without a mutant first. A mutant meets the quickest file first, and the first failing test kills it. The time limit
is CPU time, a multiple of what the tests take without a mutant, so that a busy machine kills nothing. A process that waits for ever ends by
the clock instead. The tests run without the checks of array shapes and with fewer examples than the suite has, so the suite itself notices
no less. The real corpora are not there, so tests that read them are skipped.

The tests run in a copy of the repository under --folder, in a process that is forked from one with the heavy packages already imported.
Results are appended to --out line by line, so a command that was stopped goes on. `--again` tests survivors anew, for instance after new
tests were written: the newest line of a mutant counts. `--show` prints the score of a file of results and its survivors.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
KEY = "mutants/1"
PASSED, NO_TESTS = 0, 5
FIRST_CPU_S, FIRST_WALL_S = 200, 900.0
"""Limits of a file of tests that has not been timed yet."""
# Some lists leave out slow tests: pictures, encoders, real corpora, and what repeats a near test at a larger size.
TOKENS = "tests/unit/test_tokens.py -k 'not number_of_workers'"
STREAM = ["tests/unit/test_stream_state.py", "tests/property/test_mixer.py", "tests/property/test_lag.py"]
LEDGER = [
    "tests/unit/test_ledger.py -k 'not picture'",
    *STREAM,
    "tests/golden/test_algorithm_1.py",
    "tests/property/test_repetition.py",
]
ARTEFACTS = "tests/golden/test_artefacts.py -k 'not embedding'"
SHARDS = ["tests/contract/test_shards_are_webdataset.py -k 'not whole_way'", ARTEFACTS]
SPLIT = ["tests/unit/test_shard_writing.py", "tests/property/test_holdout.py", "tests/contract/test_copies.py", *SHARDS]
POLICIES = [
    "tests/contract/test_policies.py -k 'not ado'",
    "tests/golden/test_policies.py",
    "tests/golden/test_skill_it.py",
    "tests/unit/test_priors.py",
    "tests/property/test_policies_in_the_mixer.py",
]
# The contract is a list of policies; fits of ado's scaling laws alone take nine tenths of its time.
ROWS_OF = {
    "bandit": "odm or exp3",
    "static": "fixed or proportional or stratified",
    "transforms": "floor or cap or change or smoothing or limit or transform",
    "prior": "prior and not ado",
    **{name: name for name in ("ado", "aioli", "curriculum", "doremi", "exp3", "odm", "skill_it", "skill_stratified")},
    **{name: name for name in ("softmax_loss", "temperature", "unimax")},
}
NEAR = {
    **{
        f"skillshard/policies/{name}.py": [
            f"tests/contract/test_policies.py -k '{rows} or bad_arguments'",
            *POLICIES[1:],
        ]
        for name, rows in ROWS_OF.items()
    },
    "skillshard/mixing/order.py": [
        "tests/property/test_order.py",
        "tests/property/test_repetition.py",
        "tests/golden/test_order.py",
        "tests/property/test_packing.py -k tokens_before_a_draw",
    ],
    "skillshard/mixing/packing.py": [
        "tests/property/test_packing.py",
        "tests/unit/test_stream_state.py",
        "tests/adapters/test_masked_prompts.py",
    ],
    "skillshard/mixing/round_plan.py": [
        "tests/unit/test_read_ahead.py",
        *STREAM,
        "tests/property/test_cut_texts.py",
        "tests/adapters/test_masked_prompts.py",
    ],
    "skillshard/fitting/finished.py": ["tests/unit/test_fitting.py", "tests/unit/test_demo.py"],
    "skillshard/mixing/listing.py": [
        "tests/unit/test_stream_state.py -k listing",
        "tests/unit/test_weights.py -k 'repetition or stream'",
        "tests/contract/test_bad_input.py",
    ],
    "skillshard/mixing/mixer.py": [
        *LEDGER,
        "tests/unit/test_ledger_believes_nothing.py",
        "tests/unit/test_read_ahead.py",
        "tests/unit/test_one_line.py",
    ],
    "skillshard/mixing/": [*LEDGER, TOKENS, "tests/unit/test_ledger_believes_nothing.py"],
    "skillshard/shards/cache.py": ["tests/remote/test_cache.py"],
    "skillshard/shards/tokens.py": [TOKENS, ARTEFACTS],
    "skillshard/shards/manifest.py": ["tests/contract/test_manifests.py", *SHARDS],
    "skillshard/shards/read.py": [
        "tests/fault/test_damaged_shards.py",
        "tests/fault/test_many_skills.py",
        "tests/unit/test_shard_writing.py",
        "tests/property/test_chosen_skills.py",
        "tests/contract/test_manifests.py",
        *SHARDS,
    ],
    "skillshard/shards/plan.py": ["tests/property/test_plan.py", *SPLIT],
    "skillshard/shards/tar.py": ["tests/fault/test_damaged_shards.py", *SHARDS],
    "skillshard/shards/": SPLIT,
    "skillshard/policies/loss_order.py": ["tests/unit/test_loss_order.py", *POLICIES],
    "skillshard/policies/graph_refresh.py": ["tests/unit/test_graph_refresh.py", *POLICIES],
    "skillshard/policies/": POLICIES,
    "skillshard/graph/edges.py": ["tests/property/test_graph_edges.py", ARTEFACTS],
}
"""File, or beginning of its path -> the tests nearest to it; the first that fits. The file's own doctests are run, too."""
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
    ranked = sorted(every.values(), key=lambda mutant: mutant.rank)
    return list(islice((mutant for mutant in ranked if changes_something(mutant)), number))


def changes_something(mutant: Mutant) -> bool:
    """Whether the change compiles, and is not one of the star of a signature, which Cosmic Ray takes for a product."""
    line = (REPOSITORY / mutant.file).read_text().splitlines()[mutant.line - 1]
    if line[mutant.column :].startswith("*,"):
        return False
    try:
        compile(mutated(mutant), mutant.file, "exec")
    except SyntaxError:
        return False
    return True


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


def outcome(folder: Path, tests: str, *, cpu_s: int, wall_s: float) -> tuple[str, str]:
    """What a file of tests says in a process of its own: "survived", "killed" or "timeout", and the failing test.

    Args:
        cpu_s: CPU time of the process after which the time is up.
        wall_s: the same by the clock, for a process that waits.
    """
    report = folder.with_suffix(".report")
    report.write_bytes(b"")
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        log = os.open(report, os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(_run_tests(folder, tests))
    end = time.monotonic() + wall_s
    while (waited := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the processes that the tests left, too
    if waited[0] == 0:
        os.waitpid(child, 0)
        return "timeout", "the clock"
    status = os.waitstatus_to_exitcode(waited[1])
    if status in (-signal.SIGKILL, -signal.SIGXCPU):
        return "timeout", "CPU time"
    lines = report.read_text(errors="replace").splitlines()
    first = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "")
    return ("survived", "") if status in (PASSED, NO_TESTS) else ("killed", first[:200])


def _run_tests(folder: Path, tests: str) -> int:
    import hypothesis
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that tests start
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # the first example that fails is enough
    hypothesis.settings.register_profile("mutants", deadline=None, database=None, max_examples=30, phases=phases)
    hypothesis.settings.load_profile("mutants")
    options = ["--doctest-modules", "--import-mode=importlib", "--strict-markers"]
    without = [
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-x",
        "-q",
        "--hypothesis-seed=0",
        "--no-header",
        "--assert=plain",
    ]
    without += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the packages that were imported before the fork
    return int(pytest.main([*without, *options, *shlex.split(tests)]))


class Timed:
    """CPU time and time by the clock that each file of tests takes without a mutant, measured when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: dict[str, tuple[float, float] | None] = {}

    def of(self, tests: str) -> tuple[float, float] | None:
        """None where the tests do not pass without a mutant: such a file of tests is left out, with a line that says so."""
        if tests not in self.taken:
            cpu, wall = cpu_of_children(), time.monotonic()
            result, by = outcome(self.folder, tests, cpu_s=FIRST_CPU_S, wall_s=FIRST_WALL_S)
            self.taken[tests] = (cpu_of_children() - cpu, time.monotonic() - wall) if result == "survived" else None
            if result != "survived":
                print(f"left out: {tests} does not pass without a mutant ({result} {by})", flush=True)
        return self.taken[tests]


def cpu_of_children() -> float:
    """CPU-seconds of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_mutant(folder: Path, mutant: Mutant, timed: Timed) -> dict[str, object]:
    """The record of a mutant."""
    place, before = folder / mutant.file, (REPOSITORY / mutant.file).read_text()
    after = mutated(mutant)
    limits = sorted((limit, tests) for tests in near(mutant.file) if (limit := timed.of(tests)) is not None)
    started, result, by = cpu_of_children(), "survived", ""
    place.write_text(after)
    try:
        for (cpu_s, wall_s), tests in limits:
            result, by = outcome(folder, tests, cpu_s=int(3 * cpu_s) + 10, wall_s=5 * wall_s + 60)
            if result != "survived":
                break
    finally:
        place.write_text(before)
    changes = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=False) if pair[0] != pair[1]]
    return {
        "mutant": mutant.name,
        "outcome": result,
        "by": by,
        "cpu_s": round(cpu_of_children() - started, 1),
        "before": changes[0][0].strip() if changes else "",
        "after": changes[0][1].strip() if changes else "",
    }


def newest(results: Path) -> list[dict[str, str]]:
    """The newest record of each mutant, in the order of the first ones."""
    lines = results.read_text().splitlines() if results.exists() else []
    return list({record["mutant"]: record for record in map(json.loads, lines)}.values())


def show(results: Path) -> None:
    """Print the score, by folder, and the survivors."""
    records = newest(results)
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
    parser.add_argument("--again", action="store_true", help="test the survivors of --out anew")
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
    known = {record["mutant"]: record["outcome"] for record in newest(asked.out)}
    timed = Timed(asked.folder)
    for mutant in chosen(asked.number):
        is_asked = known.get(mutant.name) == ("survived" if asked.again else None)
        if not is_asked or not mutant.file.startswith(asked.files) or time.monotonic() > end:
            continue
        record = test_mutant(asked.folder, mutant, timed)
        print(f"{record['outcome']} {record['mutant']} ({record['cpu_s']} CPU-s) {record['by']}", flush=True)
        with asked.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return show(asked.out)


if __name__ == "__main__":
    main()
