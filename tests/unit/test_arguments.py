"""A sentence of the library names arguments; the command line turns each into the option of the verb that runs."""

from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from skillshard.arguments import worded, worded_by
from skillshard.cli import app
from skillshard.cli.words import Running, in_options

COMMANDS: Any = typer.main.get_command(app)


def verbs(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """The words of each verb, and its command of click."""
    if not hasattr(command, "commands"):
        yield " ".join(names), command
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, *names, name)


VERBS = dict(verbs(COMMANDS))


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[None]:
    """The verb that the test names runs."""
    Running.begin(VERBS[request.param].params)
    yield
    Running.begin([])


def in_verb(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [name], indirect=True)


@in_verb("shard")
@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("`holdout=2`: give a share.", "--holdout 2: give a share."),
        ("Give a larger `shard_bytes`.", "Give a larger --shard-size."),
        ("Choose another `out`.", "Choose another --out."),
        ("`copies='drop'` leaves them out.", "--copies drop leaves them out."),
        ("`ray_address='a host'` is silent.", "--ray-address 'a host' is silent."),
        (r"`tags='\n'` is empty.", "--tags '\n' is empty."),
        ("""`tags="it's"` and `out='a`b'`.""", """--tags 'it'"'"'s' and --out 'a`b'."""),
        ("`workers=N` processes.", "--workers N processes."),
        ("`corpus` is read.", "CORPUS is read."),
        ("`skills=3` is of another verb.", "`skills=3` is of another verb."),
        ("`ShardSet.choose` and `Mixer` are Python.", "`ShardSet.choose` and `Mixer` are Python."),
        ("nothing in backticks: holdout, --out", "nothing in backticks: holdout, --out"),
    ],
)
def test_an_argument_in_backticks_becomes_the_option_of_the_verb(sentence: str, words: str) -> None:
    assert in_options(sentence) == words


@in_verb("graph learn")
@pytest.mark.usefixtures("running")
def test_flags_are_named_by_what_they_say() -> None:
    assert in_options("`ordered=False`, `clamp=False`, `clamp=True`, `drop_uncertain=True`, `unordered`") == (
        "--unordered, --keep-negative, --clamp, --drop-uncertain, --unordered"
    )
    assert in_options("`warmup_steps=3`, `num_seeds`, `precision='half'`, `targets`, `budget_s`") == (
        "--warmup 3, --seeds, --dtype half, --target, --budget"
    )


@in_verb("tag embedding")
@pytest.mark.usefixtures("running")
def test_an_argument_of_another_name_is_found_in_the_table() -> None:
    assert in_options("`model='nobody/nothing'` cannot be loaded") == "--encoder nobody/nothing cannot be loaded"


@given(st.text())
def test_without_a_verb_every_sentence_stays_as_it_is(sentence: str) -> None:
    assert in_options(sentence) == sentence == worded(sentence)


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_typed_value_is_shown_as_a_shell_reads_it(value: str) -> None:
    import shlex

    Running.begin([click.Option(["--answer-after"])])
    try:
        words = in_options(f"`answer_after={value!r}`")
    finally:
        Running.begin([])
    assert shlex.split(words) == ["--answer-after", value]


def test_what_the_library_prints_is_worded_by_who_runs_it() -> None:
    with worded_by(str.upper):
        assert worded("`pictures`") == "`PICTURES`"
    assert worded("`pictures`") == "`pictures`"
