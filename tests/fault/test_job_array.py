"""A command in stages: the processes of a job array meet only on the disk, and the bytes are those of a single command."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from skillshard import stages
from skillshard.errors import ExecutionError, TagsError
from skillshard.execution import Backend, keyed, run
from skillshard.job_array import ArrayPart, StageEnded, parse_part
from skillshard.merge_levels import plan_merges
from skillshard.shards import sort
from skillshard.shards.write import STAGES
from skillshard.taggers.tag import stages_of
from tests.commands import Outcome, skillshard, works
from tests.conftest import REPOSITORY, lines, samples, tree
from tests.documents import blocks_of
from tests.fault.test_killed import num_files, wait_until
from tests.tokenizers_trained import byte_tokenizer, save
from tests.topics import topic_corpus

NUM_PARTS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus in several partitions, with repeated ids, copies and a broken line, its tags and shards, and a tokenizer."""
    folder = tmp_path_factory.mktemp("array")
    (folder / "corpus").mkdir()
    records = samples(add=160, carry=80, negate=2)
    for number in range(3):
        repeated = [{**records[number - 1], "text": "again"}]
        copies = [{**record, "id": f"copy-{record['id']}"} for record in records[number:60:7]]
        (folder / "corpus" / f"{number}.jsonl").write_bytes(lines([*records[number::3], *repeated, *copies]) + b"{\n")
    save(byte_tokenizer(record["text"] for record in records), folder / "tokenizer.json")
    topic_corpus(folder / "topics", 60)
    works("tag", "embedding", folder / "topics", "--skills", 3, "--partition-size", "3kB", "--out", folder / "clusters")
    works(*tag(folder), "--out", folder / "tags", "--workers", 1)
    works(*shard(folder), "--out", folder / "shards", "--workers", 1)
    return folder


def tag(base: Path) -> tuple[object, ...]:
    options = ("--field", "skill", "--partition-size", "4kB", "--on-bad-sample", "set-aside", "--max-set-aside", "1")
    return ("tag", "metadata", base / "corpus", *options)


def shard(base: Path) -> tuple[object, ...]:
    return ("shard", base / "corpus", "--tags", base / "tags", "--shard-size", "30kB", "--holdout", 0.1)


def shard_drop(base: Path) -> tuple[object, ...]:
    return (*shard(base), "--copies", "drop")


def tokens(base: Path) -> tuple[object, ...]:
    return ("tokens", base / "shards", "--tokenizer", base / "tokenizer.json")


def reuse(base: Path) -> tuple[object, ...]:
    return ("tag", "reuse", base / "topics", "--clusters", base / "clusters", "--partition-size", "3kB")


COMMANDS = {"tag": tag, "shard": shard, "shard-drop": shard_drop, "tokens": tokens, "reuse": reuse}


def part(command: tuple[object, ...], stage: str, number: int, num_parts: int = NUM_PARTS) -> Outcome:
    return skillshard(*command, "--stage", stage, "--tasks", f"{number}/{num_parts}", "--workers", 1)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_the_parts_of_all_stages_in_any_order_give_the_bytes_of_one_command(
    verb: str, base: Path, tmp_path: Path
) -> None:
    works(*COMMANDS[verb](base), "--out", tmp_path / "whole", "--workers", 1)
    command = (*COMMANDS[verb](base), "--out", tmp_path / "parts")
    order = random.Random(3)
    stages = works(*command, "--stage", "list").split()
    assert not (tmp_path / "parts").exists(), "the list of stages begins no work"
    num_done = 0
    for stage in stages:
        num_parts = 1 if stage == "texts" or stage.startswith("merge") else NUM_PARTS
        numbers = list(range(1, num_parts + 1))
        order.shuffle(numbers)
        for number in [*numbers, numbers[0]]:  # a part may run twice
            outcome = part(command, stage, number, num_parts)
            assert outcome.code == 0, outcome
            num_done += sum(map(int, re.findall(r"(\d+) tasks? done", outcome.out)))
    assert num_done > 2 * NUM_PARTS, "the parts had nothing to do"
    works(*command, "--finish", "--workers", 1)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert "all" in works("verify", tmp_path / "parts")


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_merge_levels_that_are_divided_give_the_bytes_of_one_command(
    copies: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of a stage in steps runs once for each step. A part deletes merged files only after all readers have a record."""
    command = (*shard(base), "--copies", copies)
    works(*command, "--out", tmp_path / "whole", "--workers", 1)
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 12)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=4))
    command = (*command, "--out", tmp_path / "parts")
    for stage in STAGES:
        num_calls = 6 if stage.startswith("merge") else 1
        for _ in range(num_calls):
            for number in (1,) if stage == "texts" else (2, 1):
                outcome = part(command, stage, number, 1 if stage == "texts" else 2)
                assert outcome.code == 0, outcome
    records = tmp_path / "parts" / ".work" / "records"
    assert len(list(records.glob("merge-samples-*-2/*.json"))) > 2, "the samples were not merged in two steps"
    works(*command, "--finish", "--workers", 1)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_missing_records_end_with_exit_code_3_and_their_list(base: Path, tmp_path: Path) -> None:
    command = (*shard(base), "--out", tmp_path / "S")
    assert part(command, "sort", 2).code == 0
    outcome = part(command, "copies", 1)
    assert outcome.code == 3
    num_tasks = len(list((base / "tags").glob("parts/*.parquet")))
    missing = [f"{number:06d}" for number in range(num_tasks) if number % NUM_PARTS != 1]
    assert outcome.out.split() == missing
    assert outcome.sentence.startswith(
        f"{len(missing)} of {num_tasks} tasks of the stage sort have no record: 000000 (0.jsonl), "
    )
    finish = skillshard(*command, "--finish")
    assert finish.code == 3 and finish.out.split() == missing
    assert not (tmp_path / "S" / "manifest.json").exists()


def test_a_part_leaves_the_unfinished_files_of_other_nodes_alone(base: Path, tmp_path: Path) -> None:
    """Some file systems have locks on a single node only, so a lock cannot tell whether the writer is alive."""
    command = (*shard(base), "--out", tmp_path / "S")
    assert part(command, "sort", 1).code == 0
    of_other_node = tmp_path / "S" / ".work" / ".000.npy.1-00000000.part"
    of_other_node.write_bytes(b"half")
    assert part(command, "sort", 2).code == 0
    assert of_other_node.exists()


def test_a_finished_artefact_is_only_opened_by_a_part(base: Path, tmp_path: Path) -> None:
    command = (*shard(base), "--out", tmp_path / "S")
    works(*command, "--workers", 1)
    before = tree(tmp_path / "S")
    assert part(command, "write", 2).code == 0
    assert tree(tmp_path / "S") == before


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (
            ("--stage", "srt"),
            1,
            "no stage of this command (did you mean 'sort'?). The stages, in their order: sort, merge-tables, copies",
        ),
        (("--stage", "sort", "--tasks", "0/4"), 1, "0/4: the first number is the part, from 1 to the number of parts"),
        (("--stage", "sort", "--tasks", "5/4"), 1, "--array=1-4"),
        (("--stage", "sort", "--tasks", "four"), 1, "such as 3/8 for the third of eight"),
        (("--tasks", "1/4"), 2, "give --stage"),
        (("--finish", "--stage", "sort"), 2, "--finish does none"),
        (("--stage", "sort", "--ray-address", "auto"), 1, "a job array needs no Ray"),
    ],
)
def test_options_of_a_job_array_that_do_not_go_together_are_refused(
    options: tuple[str, ...], code: int, sentence: str, base: Path, tmp_path: Path
) -> None:
    outcome = skillshard(*shard(base), "--out", tmp_path / "S", *options)
    assert outcome.code == code and sentence in " ".join(outcome.err.replace("│", " ").split()), outcome
    assert not (tmp_path / "S").exists()


def test_a_divided_stage_in_steps_does_one_step_a_time(tmp_path: Path) -> None:
    """Each step needs the whole step before, so the parts of a stage run once for each step."""

    def call(number: int) -> str:
        backend = Backend(workers=1, array_part=ArrayPart("merge", ("merge", "write"), number, 2))
        with pytest.raises(StageEnded) as ended:
            for step in ("merge-1", "merge-2"):
                tasks = keyed({"number": number} for number in range(3))
                run(square, tasks, backend=backend, records=str(tmp_path / step))
            run(square, keyed([{"number": 1}]), backend=backend, records=str(tmp_path / "write"))
        return str(ended.value)

    assert "2 tasks done" in call(1) and not (tmp_path / "merge-2").exists()
    assert "1 task done" in call(2), "the last part goes on to its tasks of the next step"
    assert len(list((tmp_path / "merge-2").iterdir())) == 1
    assert "all tasks are done" in call(1) and len(list((tmp_path / "merge-2").iterdir())) == 3
    assert "all tasks are done" in call(1) and not (tmp_path / "write").exists()


def square(number: int) -> dict[str, int]:
    return {"square": number * number}


def test_a_tagger_that_finds_skills_in_dependent_steps_is_not_divided() -> None:
    from skillshard import taggers

    with pytest.raises(
        TagsError, match=r"embedding finds the skills in steps that depend on each other. Run the command whole"
    ):
        stages_of(taggers.embedding(taggers.lexical(), skills=3))


def test_every_task_belongs_to_exactly_one_part() -> None:
    for num_tasks in range(8):
        for num_parts in range(1, 6):
            parts = [ArrayPart("sort", STAGES, number, num_parts) for number in range(1, num_parts + 1)]
            chosen = [task for part in parts for task in part.choose(range(num_tasks))]
            assert sorted(chosen) == list(range(num_tasks))


def test_a_part_and_ray_do_not_go_together() -> None:
    with pytest.raises(ExecutionError, match="meet only on the disk"):
        Backend(ray_address="auto", array_part=ArrayPart("sort", STAGES, *parse_part("1/2")))


SBATCH = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
script = words.index("stages.sbatch")
jobs = pathlib.Path(r"{jobs}")
with jobs.open("a") as file:
    file.write(json.dumps({{"options": words[:script], "words": words[script:]}}) + "\\n")
print(len(jobs.read_text().splitlines()))
"""


@pytest.mark.long
def test_the_scripts_of_the_page_on_slurm_run_in_any_order_and_after_kills(base: Path, tmp_path: Path) -> None:
    """A small `sbatch` writes down the jobs of submit.sh. The processes of each array then run in a shuffled order, and some are killed."""
    for block in blocks_of((REPOSITORY / "docs" / "howto" / "slurm.md").read_text()):
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.code)
    binaries, jobs = tmp_path / "bin", tmp_path / "jobs"
    binaries.mkdir()
    (binaries / "sbatch").write_text(SBATCH.format(python=sys.executable, jobs=jobs))
    (binaries / "skillshard").write_text(f'#!/bin/sh\nexec {sys.executable} -m skillshard "$@"\n')
    for script in binaries.iterdir():
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    words = ["skillshard", *map(str, shard(base)), "--out", str(tmp_path / "S")]
    subprocess.run(["bash", "submit.sh", "3", *words], cwd=tmp_path, env=environment, check=True)
    submitted = [json.loads(line) for line in jobs.read_text().splitlines()]
    assert [job["words"][1] for job in submitted] == [*STAGES, "finish"]
    assert [f"--dependency=afterok:{number}" in job["options"] for number, job in enumerate(submitted)] == [
        False,
        *[True] * len(STAGES),
    ]

    order, num_killed = random.Random(5), 0
    for job in submitted:
        parts = 3 if "--array=1-3" in job["options"] else 1
        numbers = list(range(1, parts + 1))
        order.shuffle(numbers)
        for number in numbers:
            of_part = {"SLURM_CPUS_PER_TASK": "1"}
            if parts > 1:
                of_part |= {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(parts)}
            command = ["bash", *job["words"]]
            if job["words"][1] in ("sort", "write") and number == numbers[0]:
                killed = subprocess.Popen(command, cwd=tmp_path, env=environment | of_part, stdout=subprocess.DEVNULL)
                files = num_files(tmp_path)
                wait_until(lambda: num_files(tmp_path) > files or killed.poll() is not None, timeout_s=120)  # noqa: B023
                killed.kill()
                num_killed += killed.wait() == -signal.SIGKILL
            subprocess.run(command, cwd=tmp_path, env=environment | of_part, check=True, capture_output=True)
    assert num_killed >= 1, "killed too late to show anything"
    assert tree(tmp_path / "S") == tree(base / "shards")
