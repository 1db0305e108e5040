"""A sentence of the library names arguments. The command line turns each argument into the option of the verb that runs."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.cli import app
from skillshard.cli.words import Running, in_options
from skillshard.corpus import Corpus
from skillshard.errors import SkillshardError
from skillshard.graph.edges import EdgeRule
from skillshard.graph.learn import learn_graph
from skillshard.mixing.listing import static_policy
from skillshard.shards.read import ShardSet
from skillshard.taggers.losses.tagger import loss_tagger
from tests.commands import fails, write_artefacts
from tests.conftest import REPOSITORY

COMMANDS: Any = typer.main.get_command(app)


def verbs(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Return the words of each verb, and the command of click."""
    if not hasattr(command, "commands"):
        yield " ".join(names), command
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, *names, name)


VERBS = dict(verbs(COMMANDS))


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the verb that the test names."""
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
    assert in_options(sentence) == sentence


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_typed_value_is_shown_as_a_shell_reads_it(value: str) -> None:
    Running.begin([click.Option(["--answer-after"])])
    try:
        words = in_options(f"`answer_after={value!r}`")
    finally:
        Running.begin([])
    assert shlex.split(words) == ["--answer-after", value]


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
QUOTED_COMMAND = re.compile(r"'(?:skillshard|zstd|ray|tar) [^']*'|skillshard (?:tag|inspect|verify|graph) [^;.]*")
"""A whole command: in quotes, or at the end of a sentence with the next step."""
OF_OTHER_TOOLS = {"--array", "--dereference", "--hard-dereference", "--long", "--normalize_loss"}
"""Flags of Slurm, tar and zstd, and of the paper's code."""
WRITERS_OF_COMMANDS = {"job_array.py", "pipeline.py", "corpus/guess.py", "corpus/peek.py", "report/page.py"}
"""Files that write commands: the next command of a job array, the commands of a pipeline, the command that `peek` proposes, and the commands
that reproduce a run, whose page also names variables of CSS."""


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each string of a file with its line. The values in an f-string are left out."""
    inner: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            inner.update(node.values)
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.lineno, node.value


def flags_in(sentence: str) -> list[str]:
    """Return the flags of a sentence outside of whole commands."""
    return [flag for flag in FLAG.findall(QUOTED_COMMAND.sub("", sentence)) if flag not in OF_OTHER_TOOLS]


@pytest.mark.parametrize(
    ("sentence", "flags"),
    [
        ("Choose another --out.", ["--out"]),
        ("(--map X)", ["--map"]),
        ("merge it with 'skillshard regroup T --min-share 0.01 --out R'", []),
        ("pack with tar --dereference", []),
        ("a dash -- as in prose, and an em--dash", []),
    ],
)
def test_a_flag_is_seen_but_in_a_whole_command(sentence: str, flags: list[str]) -> None:
    assert flags_in(sentence) == flags


def test_no_sentence_of_the_library_names_a_flag() -> None:
    library = REPOSITORY / "skillshard"
    beside = {library / name for name in WRITERS_OF_COMMANDS}
    files = [
        path for path in sorted(library.rglob("*.py")) if path not in beside and library / "cli" not in path.parents
    ]
    assert len(files) > 100
    named = [
        f"{path.relative_to(REPOSITORY)}, line {line}: {', '.join(flags)}"
        for path in files
        for line, sentence in sentences(path)
        if (flags := flags_in(sentence))
    ]
    assert named == [], "name the argument in backticks, as Python writes it"


ABSOLUTE = EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=False)
MISTAKES = (
    "a number out of range",
    "an option of another name",
    "a value that is no choice",
    "an output that is something else",
    "a missing argument",
    "an argument of another policy",
    "a bad sample",
)


def mistakes(folder: Path) -> dict[str, tuple[Callable[[], object], tuple[object, ...], str, str]]:
    """Return, for each kind of mistake, a call that makes the mistake, a command that makes the mistake, and both names in the sentences."""
    shards = ShardSet.open(folder / "S")
    return {
        "a number out of range": (
            lambda: learn_graph(shards, folder / "g.json", method="linear", steps=8, rule=ABSOLUTE, for_steps=4),
            ("graph", "learn", folder / "S", "--steps", 8, "--for-steps", 4, "--out", folder / "g.json"),
            "`for_steps=4` is shorter than",
            "--for-steps 4 is shorter than",
        ),
        "an option of another name": (
            lambda: taggers.embedding(taggers.lexical(), skills=2, min_share=0.7),
            ("tag", "embedding", folder / "C", "--skills", 2, "--balance", 0.7, "--out", folder / "E"),
            "`min_share=0.7`: give the least share",
            "--balance 0.7: give the least share",
        ),
        "a value that is no choice": (
            lambda: loss_tagger(skills=2, measure="half"),
            ("tag", "loss", folder / "C", "--skills", 2, "--measure", "half", "--out", folder / "L"),
            "`measure='half'`: give 'whole' or 'parts'.",
            "--measure half: give 'whole' or 'parts'.",
        ),
        "an output that is something else": (
            lambda: taggers.tag_corpus(Corpus.open([folder / "C"]), taggers.metadata("meta.skill"), folder / "S"),
            ("tag", "metadata", folder / "C", "--field", "meta.skill", "--out", folder / "S"),
            "Choose another `out`",
            "Choose another --out",
        ),
        "a missing argument": (
            lambda: static_policy("skill_it", shards.skills, graph="g.json"),
            ("mix", folder / "S", "--draws", 4, "--policy", "skill_it", "--graph", "g.json"),
            "policy skill_it needs `eta`: give it too.",
            "policy skill_it needs --eta: give it too.",
        ),
        "an argument of another policy": (
            lambda: static_policy("stratified", shards.skills, tau=2.0),
            ("mix", folder / "S", "--draws", 4, "--tau", 2.0),
            "does not take `tau`: leave it out, or give `policy='temperature'`.",
            "does not take --tau: leave it out, or give --policy temperature.",
        ),
        "a bad sample": (
            lambda: taggers.tag_corpus(Corpus.open([folder / "C"]), taggers.metadata("nowhere"), folder / "N"),
            ("tag", "metadata", folder / "C", "--field", "nowhere", "--out", folder / "N"),
            "name another field with `fields`, `id_field` or `text_field`, or set such samples aside with `on_bad_sample='set-aside'`",
            "name another field with --field, --id-field or --text-field, or set such samples aside with --on-bad-sample set-aside",
        ),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artefacts(tmp_path_factory.mktemp("arguments"))


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_call_and_a_command_name_the_same_mistake_each_in_its_own_words(root: Path, kind: str) -> None:
    call, command, in_python, in_shell = mistakes(root)[kind]
    with pytest.raises(SkillshardError) as caught:
        call()
    assert in_python in str(caught.value)
    sentence = fails(*command)
    assert in_shell in sentence and "`" not in sentence
    assert flags_in(str(caught.value)) == []
