"""A call from Python shows its progress in a terminal and in a notebook, and is silent elsewhere."""

import os
import pty
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import skillshard as ss
from skillshard.execution import OnStage, silent
from tests.conftest import HERE, samples, write_corpus
from tests.tokenizers_trained import byte_tokenizer


class Work:
    """Every public call that shows stages, with its inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = ss.Corpus.open(write_corpus(folder / "C", samples(add=60, carry=40)))
        self.tags = ss.tag_corpus(self.corpus, ss.taggers.metadata("skill"), folder / "tags", backend=HERE)
        self.shards = ss.write_shards(self.corpus, self.tags, folder / "shards", holdout=0.1, backend=HERE)

    def tag(self, out: Path, **options: Any) -> object:
        return ss.tag_corpus(self.corpus, ss.taggers.metadata("skill"), out, backend=HERE, **options)

    def shard(self, out: Path, **options: Any) -> object:
        return ss.write_shards(self.corpus, self.tags, out, holdout=0.1, backend=HERE, **options)

    def tokenize(self, out: Path, **options: Any) -> object:
        return ss.write_tokens(self.shards, byte_tokenizer(["add carry"]), out, backend=HERE, **options)

    def regroup(self, out: Path, **options: Any) -> object:
        return ss.regroup_tags([self.tags.folder], out, mapping={"add": "sum"}, backend=HERE, **options)

    def learn(self, out: Path, **options: Any) -> object:
        rule = ss.EdgeRule(
            "absolute", threshold=None, average="end", clamp=True, off_diagonal=None, drop_uncertain=False
        )
        return ss.learn_graph(
            self.shards,
            out / "graph.json",
            method="linear",
            steps=2,
            rule=rule,
            reading=ss.ReadingChoice(window=8),
            backend=HERE,
            **options,
        )


CALLS: dict[str, tuple[Callable[..., object], str]] = {
    "tag_corpus": (Work.tag, "tagging"),
    "write_shards": (Work.shard, "writing"),
    "write_tokens": (Work.tokenize, "tokenizing"),
    "regroup_tags": (Work.regroup, "counting"),
    "learn_graph": (Work.learn, "trials"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("bars"))


class Terminal:
    """Standard error as a terminal, with the written text."""

    def __init__(self) -> None:
        self.leader, self.follower = pty.openpty()
        self.stream = os.fdopen(self.follower, "w")

    def written(self) -> str:
        self.stream.flush()
        os.set_blocking(self.leader, False)
        pieces = b""
        while True:
            try:
                pieces += os.read(self.leader, 1 << 16)
            except (BlockingIOError, OSError):
                return pieces.decode()


class Kernel:
    """IPython in a notebook: an output that can be replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_kernel: bool = True) -> None:
        self.texts: list[str] = []
        shell = SimpleNamespace(kernel=object()) if is_kernel else SimpleNamespace()
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=self.display))

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> "Kernel":
        assert raw and display_id and not self.texts
        self.texts.append(content["text/plain"])
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.texts.append(content["text/plain"])


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_bars_in_a_terminal_unless_it_is_told_not_to(
    name: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, stage = CALLS[name]
    for options, is_shown in (({}, True), ({"progress": False}, False), ({"on_stage": silent}, False)):
        terminal = Terminal()
        out = tmp_path / "-".join(["out", *options])
        out.mkdir()
        with monkeypatch.context() as patched:
            patched.setenv("TERM", "xterm")
            patched.setattr(sys, "stderr", terminal.stream)
            call(work, out, **options)
        text = terminal.written()
        assert (stage in text) == is_shown and bool(text) == is_shown
        terminal.stream.close()
        os.close(terminal.leader)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_bars_in_a_notebook_in_one_output(
    name: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call, stage = CALLS[name]
    kernel = Kernel(monkeypatch)
    call(work, tmp_path)
    assert re.search(rf"^━{{20}} {stage}: \d+ of \d+ in \d+ s$", kernel.texts[-1], flags=re.M)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_silent_where_there_is_neither(
    name: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch, is_kernel=False)
    CALLS[name][0](work, tmp_path)
    monkeypatch.setattr(sys, "stderr", None)  # as in a program without a console
    CALLS[name][0](work, tmp_path)
    assert capfd.readouterr() == ("", "") and kernel.texts == []


def test_ctrl_c_in_a_call_from_python_stays_a_keyboard_interrupt(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kernel(monkeypatch)

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skillshard.shards.write.sort_partition", interrupted)
    monkeypatch.setattr("skillshard.shards.write.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work.shard(tmp_path / "S")


def test_the_stages_of_a_caller_come_in_place_of_the_bars(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, stages = Kernel(monkeypatch), []

    def on_stage(name: str, num: int) -> Any:
        stages.append(name)
        return silent(name, num)

    watched: OnStage = on_stage
    work.tag(tmp_path / "T", on_stage=watched)
    assert stages == ["tagging", "checking ids"] and kernel.texts == []
