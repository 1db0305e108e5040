"""Measure how many faults the near tests notice: mutants of the core, each tested by the tests nearest to its file.

    pip install -e '.[all,test]' cosmic-ray
    python benchmarks/mutants.py --folder /tmp/mutants --out benchmarks/results/mutants.jsonl [--files skillshard/policies/ ...] [--minutes 40]

Cosmic Ray's operators define the possible changes of the chosen files. The benchmark takes the changes with the lowest keyed hash of file,
line, operator and column, so the choice is the same on every machine, and a larger number only adds to the choice. Annotations are not mutated, nor is `==` to
`is`, which for small numbers depends on the interpreter. A change that Python cannot compile, or that only replaces the star of a
signature, is no mutant: each test would notice the first kind, and no test the second kind.

Each file of tests is timed without a mutant first. A mutant meets the quickest file first, and the first failing test kills the mutant. The
time limit is CPU time, a multiple of the time of the tests without a mutant, so that a busy machine kills nothing. A process that waits for
ever ends by the clock. The tests run without the checks of array shapes and with fewer examples than in the suite, so the suite itself
notices no less. The real corpora are absent, so tests that read the real corpora are skipped.

The tests run in a copy of the repository under --folder, in a process that is forked from a process with the heavy packages already
imported. Results are appended to --out line by line, so a stopped command can be continued. `--again` tests survivors again, for instance
after new tests were written. The newest line of a mutant counts. `--show` prints the score of a file of results and the survivors.
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
# Some lists leave out slow tests: pictures, encoders, real corpora, and repetitions of a near test at a larger size.
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
COLUMNS = ["tests/property/test_columns.py", "tests/property/test_table_columns.py"]
CONTINUED = ["tests/unit/test_continue.py", "tests/unit/test_skip.py", "tests/property/test_continuation.py"]
PACKINGS = [f"tests/property/test_packing_{name}.py" for name in ("best_fit", "concat", "one")]
POLICIES = [
    "tests/contract/test_policies.py -k 'not ado'",
    "tests/golden/test_policies.py",
    "tests/golden/test_skill_it.py",
    "tests/unit/test_priors.py",
    "tests/property/test_policies_in_the_mixer.py",
]
# The contract is a list of policies. The fits of ado's scaling laws alone take nine tenths of its time.
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
    ],
    "skillshard/mixing/skill_order.py": [
        "tests/property/test_order.py",
        "tests/golden/test_order.py",
        "tests/property/test_continuation.py",
        "tests/property/test_packing_concat.py -k tokens_before_a_draw",
        "tests/property/test_packing_skill.py",
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
    "skillshard/mixing/packings/": ["tests/property/test_packing.py", *PACKINGS],
    "skillshard/mixing/ahead.py": [*STREAM, "tests/unit/test_read_ahead.py"],
    "skillshard/mixing/arguments.py": [
        "tests/unit/test_stream_state.py",
        "tests/unit/test_ledger.py -k 'not picture'",
        TOKENS,
        "tests/adapters/test_batch_losses.py",
        "tests/contract/test_bad_input.py",
    ],
    "skillshard/mixing/batch.py": ["tests/unit/test_one_line.py", "tests/property/test_mixer.py"],
    "skillshard/mixing/chain.py": ["tests/property/test_recorded_chain.py", "tests/unit/test_past.py", *CONTINUED],
    "skillshard/mixing/recorded_chain.py": ["tests/property/test_recorded_chain.py", "tests/unit/test_past.py"],
    "skillshard/mixing/place_records.py": [
        *CONTINUED,
        "tests/unit/test_ledger_believes_nothing.py",
        "tests/contract/test_schemas.py",
    ],
    "skillshard/mixing/samples.py": [
        "tests/property/test_mixer.py",
        "tests/property/test_fields.py",
        "tests/property/test_members.py",
        "tests/unit/test_stream_state.py",
    ],
    "skillshard/mixing/seen_draws.py": [*CONTINUED, "tests/property/test_blocks_continued.py"],
    "skillshard/mixing/state.py": [
        *STREAM,
        "tests/unit/test_continue.py",
        "tests/unit/test_ledger_believes_nothing.py",
        "tests/property/test_packing_best_fit.py",
    ],
    "skillshard/fitting/finished.py": ["tests/unit/test_fitting.py", "tests/unit/test_demo.py"],
    "skillshard/mixing/listing.py": [
        "tests/unit/test_stream_state.py -k listing",
        "tests/unit/test_weights.py -k 'repetition or stream or (every_policy and skill_it) or no_weights_to_write'",
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
    "skillshard/shards/skill_shards.py": [
        "tests/fault/test_damaged_shards.py",
        "tests/fault/test_many_skills.py",
        "tests/unit/test_shard_writing.py",
        "tests/property/test_chosen_skills.py",
        "tests/contract/test_manifests.py",
        *SHARDS,
    ],
    "skillshard/shards/open_shard.py": [
        "tests/fault/test_damaged_shards.py",
        "tests/fault/test_many_skills.py",
        "tests/unit/test_shard_writing.py",
        "tests/property/test_chosen_skills.py",
        "tests/contract/test_manifests.py",
        *SHARDS,
    ],
    "skillshard/shards/faults.py": [
        "tests/fault/test_damaged_shards.py",
        "tests/fault/test_many_skills.py",
        "tests/unit/test_shard_writing.py",
        "tests/property/test_chosen_skills.py",
        "tests/contract/test_manifests.py",
        *SHARDS,
    ],
    "skillshard/shards/plan.py": ["tests/property/test_plan.py", *SPLIT],
    "skillshard/shards/tar.py": ["tests/fault/test_damaged_shards.py", *SHARDS],
    "skillshard/shards/account.py": ["tests/unit/test_members_exported.py"],
    "skillshard/shards/contents.py": [
        "tests/property/test_shuffle.py -k 'not real'",
        "tests/contract/test_compact.py",
        *SPLIT,
    ],
    "skillshard/shards/mapped.py": [
        "tests/fault/test_many_skills.py",
        "tests/fault/test_damaged_shards.py",
        "tests/fault/test_damaged_tokens.py",
        *SHARDS,
    ],
    "skillshard/shards/tagged_rows.py": ["tests/property/test_holdout.py", "tests/contract/test_bad_input.py", *SHARDS],
    "skillshard/shards/token_manifest.py": [
        "tests/fault/test_damaged_tokens.py",
        TOKENS,
        "tests/unit/test_chat_templates.py",
        "tests/contract/test_schemas.py",
    ],
    "skillshard/shards/": SPLIT,
    "skillshard/policies/loss_order.py": ["tests/unit/test_loss_order.py", *POLICIES],
    "skillshard/policies/graph_refresh.py": ["tests/unit/test_graph_refresh.py", *POLICIES],
    "skillshard/policies/": POLICIES,
    "skillshard/graph/edges.py": ["tests/property/test_graph_edges.py", ARTEFACTS],
    "skillshard/answers.py": ["tests/property/test_answers.py", "tests/property/test_sampled_texts.py"],
    "skillshard/proxy/samples.py": [
        "tests/property/test_answers.py",
        "tests/property/test_sampled_texts.py",
        "tests/unit/test_readings.py",
        "tests/unit/test_one_reading.py -k sentence",
    ],
    "skillshard/endless_rows.py": ["tests/unit/test_extras.py -k example", "tests/adapters/test_hf.py -k length"],
    "skillshard/corpus/line_columns.py": [*COLUMNS[:1], "tests/unit/test_corpus.py"],
    "skillshard/corpus/line_jsons.py": ["tests/property/test_line_jsons.py"],
    "skillshard/corpus/": [*COLUMNS, "tests/property/test_table_values.py", "tests/unit/test_corpus.py"],
}
"""File, or beginning of its path -> the nearest tests. The first match counts. The doctests of the file run too."""
OTHER_FILES = [
    "skillshard/graph/edges.py",
    "skillshard/answers.py",
    "skillshard/endless_rows.py",
    "skillshard/proxy/samples.py",
    *(f"skillshard/corpus/{name}.py" for name in ("columns", "line_columns", "table_columns", "table_digest")),
]
"""The mutated files beside the folders `mixing`, `shards` and `policies`."""
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
    """A change of a file.

    Attributes:
        file: Path in the repository.
        line, column: Beginning of the change.
        operator: Cosmic Ray's name of the change.
        occurrence: Number of the operator's place in the file.
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
    """Return the tests of a file, the doctests of the file first."""
    tests = next(tests for begin, tests in NEAR.items() if file.startswith(begin))
    return [file, *tests]


def files() -> list[str]:
    """List the files that are mutated."""
    folders = [REPOSITORY / "skillshard" / name for name in ("mixing", "shards", "policies")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    return [*(str(path.relative_to(REPOSITORY)) for path in paths), *OTHER_FILES]


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return begin and end of each annotation, as line and column."""
    expressions: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            expressions.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            expressions.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in expressions
        if node
    ]


def mutants(file: str) -> Iterator[Mutant]:
    """Yield every change of a file that Cosmic Ray's operators without arguments can make."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    spans = annotations((REPOSITORY / file).read_text())
    nodes = list(ast_nodes(get_ast_from_path(REPOSITORY / file)))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name.endswith(("_Is", "_IsNot")):
            continue
        instance = operator()
        places = (begin for node in nodes for begin, _ in instance.mutation_positions(node))
        for occurrence, begin in enumerate(places):
            if not any(first <= begin < last for first, last in spans):
                yield Mutant(file, *begin, name, occurrence)


def chosen(number: int, begins: tuple[str, ...]) -> list[Mutant]:
    """Return the mutants of the lowest rank, and of each place and operator only the first mutant.

    Args:
        number: Number of mutants.
        begins: Beginnings of the paths of the files to choose from.
    """
    chosen_files = [file for file in files() if file.startswith(begins)]
    every = {mutant.name: mutant for file in chosen_files for mutant in reversed(list(mutants(file)))}
    ranked = sorted(every.values(), key=lambda mutant: mutant.rank)
    return list(islice((mutant for mutant in ranked if changes_something(mutant)), number))


def changes_something(mutant: Mutant) -> bool:
    """Return whether the change compiles and is not a change of the star of a signature, which Cosmic Ray takes for a product."""
    line = (REPOSITORY / mutant.file).read_text().splitlines()[mutant.line - 1]
    if line[mutant.column :].startswith("*,"):
        return False
    try:
        compile(mutated(mutant), mutant.file, "exec")
    except SyntaxError:
        return False
    return True


def mutated(mutant: Mutant) -> str:
    """Return the source of the changed file."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = mutate_code((REPOSITORY / mutant.file).read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    assert source is not None, mutant
    return source


def copy_repository(folder: Path) -> None:
    """Copy the files that git tracks into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)


def outcome(folder: Path, tests: str, *, cpu_s: int, wall_s: float) -> tuple[str, str]:
    """Run a file of tests in a process of its own, and return "survived", "killed" or "timeout" with the failing test.

    Args:
        cpu_s: Limit of the CPU time of the process.
        wall_s: Limit by the clock, for a process that waits.
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
        os.killpg(child, signal.SIGKILL)  # the tests may leave processes
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
    os.environ["PYTHONPATH"] = str(folder)  # the processes that tests start read the copy too
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # the first failing example is enough
    hypothesis.settings.register_profile("mutants", deadline=None, database=None, max_examples=30, phases=phases)
    options = ["--doctest-modules", "--import-mode=importlib", "--strict-markers"]
    without = [
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-x",
        "-q",
        "--hypothesis-seed=0",
        "--hypothesis-profile=mutants",
        "--no-header",
        "--assert=plain",
    ]
    without += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # these packages were imported before the fork
    return int(pytest.main([*without, *options, *shlex.split(tests)]))


class Timed:
    """The CPU time and wall time of each file of tests without a mutant, measured at the first request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: dict[str, tuple[float, float] | None] = {}

    def of(self, tests: str) -> tuple[float, float] | None:
        """Return the times, or None if the tests do not pass without a mutant. A printed line names a file that is left out."""
        if tests not in self.taken:
            cpu, wall = cpu_of_children(), time.monotonic()
            result, by = outcome(self.folder, tests, cpu_s=FIRST_CPU_S, wall_s=FIRST_WALL_S)
            self.taken[tests] = (cpu_of_children() - cpu, time.monotonic() - wall) if result == "survived" else None
            if result != "survived":
                print(f"left out: {tests} does not pass without a mutant ({result} {by})", flush=True)
        return self.taken[tests]


def cpu_of_children() -> float:
    """Return the CPU-seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_mutant(folder: Path, mutant: Mutant, timed: Timed) -> dict[str, object]:
    """Test a mutant, and return the record."""
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
    """Return the newest record of each mutant, in the order of the first records."""
    lines = results.read_text().splitlines() if results.exists() else []
    return list({record["mutant"]: record for record in map(json.loads, lines)}.values())


def show(results: Path) -> None:
    """Print the score of each folder, and the survivors."""
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
    parser.add_argument("--folder", type=Path, help="folder for the copy of the repository")
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON line for each mutant")
    parser.add_argument("--number", type=int, default=300, help="number of mutants")
    parser.add_argument(
        "--files",
        nargs="+",
        default=["skillshard/"],
        metavar="PATH",
        help="choose among the files whose path begins so",
    )
    parser.add_argument("--minutes", type=float, default=10_000.0, help="minutes after which no mutant begins")
    parser.add_argument("--again", action="store_true", help="test the survivors of --out again")
    parser.add_argument("--show", action="store_true", help="print the score of --out and end")
    arguments = parser.parse_args()
    if arguments.show:
        return show(arguments.out)
    if arguments.folder is None:
        parser.error("--folder is required")
    end = time.monotonic() + 60 * arguments.minutes
    copy_repository(arguments.folder)
    for name in HEAVY + IN_A_PROCESS:
        __import__(name)
    known = {record["mutant"]: record["outcome"] for record in newest(arguments.out)}
    timed = Timed(arguments.folder)
    for mutant in chosen(arguments.number, tuple(arguments.files)):
        is_due = known.get(mutant.name) == ("survived" if arguments.again else None)
        if not is_due or time.monotonic() > end:
            continue
        record = test_mutant(arguments.folder, mutant, timed)
        print(f"{record['outcome']} {record['mutant']} ({record['cpu_s']} CPU-s) {record['by']}", flush=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return show(arguments.out)


if __name__ == "__main__":
    main()
