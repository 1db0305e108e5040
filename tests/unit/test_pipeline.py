"""A pipeline file runs the stages in order, checks all stages first, and skips finished stages."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from skillshard.cli import run_job
from skillshard.cli.words import Running
from tests.commands import fails, skillshard, works
from tests.conftest import REPOSITORY, samples, tree, write_corpus
from tests.tokenizers_trained import byte_tokenizer, save


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with a corpus, a tokenizer, a map and a pipeline file."""
    records = samples(add=40, carry=30, negate=4)
    write_corpus(tmp_path / "corpus", records)
    save(byte_tokenizer(record["text"] for record in records), tmp_path / "tokenizer.json")
    (tmp_path / "map.json").write_text('{"negate": "add"}')
    monkeypatch.chdir(tmp_path)
    write()
    return tmp_path


def write(**changes: object) -> None:
    """Write pipeline.yaml of the working directory. A section None is left out."""
    sections: dict[str, object] = {
        "corpus": "corpus",
        "out": "work",
        "workers": 1,
        "tag": {"metadata": {"field": "skill"}},
        "regroup": {"map": "map.json"},
        "shard": {"holdout": 0.1, "shard-size": "30kB"},
        "tokens": {"tokenizer": "tokenizer.json", "special-tokens": True},
    }
    sections |= changes
    Path("pipeline.yaml").write_text(
        yaml.safe_dump({key: value for key, value in sections.items() if value is not None}, sort_keys=False)
    )


def statuses(out: str) -> dict[str, str]:
    """Return the status of each stage from the last table of an output."""
    rows = re.findall(r"^ *(tag metadata|regroup|shard|tokens|graph learn) {2,}(.+?) {2,}\S+ *$", out, flags=re.M)
    return dict(rows)


def test_a_pipeline_gives_the_bytes_of_its_commands_and_skips_what_is_finished(folder: Path) -> None:
    dry = works("run", "pipeline.yaml", "--dry-run")
    assert not (folder / "work").exists()
    assert set(statuses(dry).values()) == {"to do"}
    commands = [line.split()[1:] for line in dry.splitlines() if line.startswith("skillshard ")]
    assert [words[0] for words in commands] == ["tag", "regroup", "shard", "tokens"]
    done = statuses(works("run", "pipeline.yaml"))
    assert list(done) == ["tag metadata", "regroup", "shard", "tokens"]
    assert all(status.startswith("done in ") for status in done.values())
    (folder / "work").rename(folder / "by-pipeline")
    for words in commands:
        works(*words)
    assert tree(folder / "work") == tree(folder / "by-pipeline")
    again = works("run", "pipeline.yaml")
    assert set(statuses(again).values()) == {"finished before"}
    assert "samples" not in again, "the tables of finished stages are not printed again"


def test_a_pipeline_that_ended_early_goes_on(folder: Path) -> None:
    write(tokens={"tokenizer": "map.json"})
    assert "map.json" in fails("run", "pipeline.yaml")
    write()
    by_stage = statuses(works("run", "pipeline.yaml"))
    assert [status.split()[0] for status in by_stage.values()] == ["finished", "finished", "finished", "done"]


def test_a_finished_stage_with_other_options_is_refused(folder: Path) -> None:
    works("run", "pipeline.yaml")
    write(shard={"holdout": 0.2, "shard-size": "30kB"})
    assert "arguments.holdout: 0.1 -> 0.2" in fails("run", "pipeline.yaml")


def test_from_a_stage_on_the_earlier_stages_are_not_looked_at(folder: Path) -> None:
    assert "work/tags is not finished, and --from shard does not run the stage 'tag metadata'" in fails(
        "run", "pipeline.yaml", "--from", "shard"
    )
    works("run", "pipeline.yaml")
    shutil.rmtree("work/tokens")
    shutil.rmtree("corpus")
    by_stage = statuses(works("run", "pipeline.yaml", "--from", "tokens"))
    assert by_stage["shard"] == "not looked at" and by_stage["tokens"].startswith("done in ")
    assert "'tokn' is no stage of pipeline.yaml (did you mean 'tokens'?). The stages: tag, regroup" in fails(
        "run", "pipeline.yaml", "--from", "tokn"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shrd": {}}, "unknown key 'shrd' (did you mean 'shard'?). The keys: corpus, out, workers, ray-address, tag"),
        ({"shard": {"holdot": 0.1}}, "shard: unknown key 'holdot' (did you mean 'holdout'?)"),
        ({"shard": {"tags": "tags"}}, "shard: unknown key 'tags'"),
        ({"tag": {"metdata": {}}}, "tag: unknown key 'metdata' (did you mean 'metadata'?)"),
        ({"tag": {"metadata": {}}}, "tag metadata: Missing option '--field'"),
        ({"shard": {"holdout": "much"}}, "shard: Invalid value for '--holdout'"),
        ({"corpus": 7}, "does not fit schemas/pipeline-1.json: corpus"),
        (
            {"regroup": {"map": {"negate": "add"}}},
            """regroup.map is {"negate":"add"}, and the values of an option are those of the command line""",
        ),
        ({"tag": {"metadata": {"field": [["skill"]]}}}, """tag.metadata.field is [["skill"]], and the values"""),
        (
            {"tag": {"metadata": {"field": "skill"}, "embedding": {"skills": 3}}, "regroup": None},
            "Add a section 'regroup'",
        ),
        ({"shard": None}, "the stages 'tokens' and 'graph' read shards: add a section 'shard'"),
    ],
)
def test_all_options_of_all_stages_are_checked_before_the_first_stage(
    changes: dict[str, object], sentence: str, folder: Path
) -> None:
    write(**changes)
    for options in ((), ("--dry-run",)):
        assert sentence in fails("run", "pipeline.yaml", *options)
    assert not (folder / "work").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("corpus: a\ncorpus: b\n", "pipeline.yaml line 2: the key 'corpus' stands twice."),
        ("corpus: [a\n", "pipeline.yaml line 2: "),
        ("- corpus\n", "pipeline.yaml: give a mapping of sections: corpus, out, tag"),
        ("", "pipeline.yaml: give a mapping of sections"),
    ],
)
def test_a_file_that_is_no_pipeline_is_one_sentence(text: str, sentence: str, folder: Path) -> None:
    (folder / "pipeline.yaml").write_text(text)
    assert sentence in fails("run", "pipeline.yaml")


def test_an_empty_section_is_a_stage_without_options(folder: Path) -> None:
    text = "corpus: corpus\nout: work\ntag: {metadata: {field: skill}}\nshard:\n"
    (folder / "pipeline.yaml").write_text(text)
    assert set(statuses(works("run", "pipeline.yaml", "--dry-run"))) == {"tag metadata", "shard"}


def test_two_ways_to_tag_are_crossed(folder: Path) -> None:
    write(
        tag={"metadata": {"field": "skill"}, "embedding": {"skills": 2}}, regroup={"min-share": 0.01, "rest": "other"}
    )
    commands = works("run", "pipeline.yaml", "--dry-run")
    assert "skillshard regroup work/tags-metadata work/tags-embedding --workers 1 --min-share 0.01" in commands


def test_the_command_line_replaces_the_choice_of_processes(folder: Path) -> None:
    commands = works("run", "pipeline.yaml", "--dry-run", "--ray-address", "local")
    assert "--workers" not in commands and commands.count("--ray-address local") == 4


def test_a_job_refuses_relative_paths_in_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "pipeline.yaml", "--dry-run"])
    monkeypatch.setattr(Running, "is_job", False)
    with pytest.raises(SystemExit) as ended:
        run_job("run")
    assert ended.value.code == 1
    assert "corpus is a relative path, and the working directory of a Ray job is a copy" in capsys.readouterr().err


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    works("synth", "lego", "--k", 3, "--samples", 400, "--out", "lego")
    outcome = skillshard("run", REPOSITORY / "examples" / "pipeline.yaml", "--workers", 1)
    assert outcome.code == 0, outcome
    assert list(statuses(outcome.out)) == ["tag metadata", "regroup", "shard", "graph learn"]
    works("verify", "lego-work/shards")
