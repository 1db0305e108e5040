"""The blocks of the pages of the documentation site run."""

import re
import shutil
from pathlib import Path

import pytest

import skillshard as ss
from tests.conftest import REPOSITORY, lines
from tests.documents import blocks_of, check_output, check_unrun, commands_of, in_this_process, run_document
from tests.tokenizers_trained import byte_tokenizer, save
from tests.topics import WORDS

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    path
    for folder in ("howto", "evidence", "reference")
    for path in (DOCS / folder).glob("*.md")
    if any(block.is_run or block.mark for block in blocks_of(path.read_text()))
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the directories that every how-to page begins with: a corpus of five topics, its tags, its shards and a graph."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "corpus").mkdir()
    for name, words in WORDS.items():
        vocabulary = words.split()
        records = [
            {
                "id": f"{name}-{number:03d}",
                "text": " ".join(vocabulary[(number * step + step) % len(vocabulary)] for step in range(1, 24))
                + f" {number}",
                "meta": {"category": name},
            }
            for number in range(60)
        ]
        (folder / "corpus" / f"{name}.jsonl").write_bytes(lines(records))
    corpus = ss.Corpus.open(folder / "corpus")
    tags = ss.tag_corpus(corpus, ss.taggers.metadata("category"), folder / "tags", backend=ss.Backend(workers=1))
    shards = ss.write_shards(corpus, tags, folder / "shards", holdout=0.1, backend=ss.Backend(workers=1))
    ss.SkillGraph.chain(shards.skills).save(folder / "graph.json")
    save(byte_tokenizer(WORDS.values(), separator="<|endoftext|>"), folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_blocks_of_a_page_run(page: Path, prepared: Path, tmp_path: Path) -> None:
    for path in prepared.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    run_document(page, tmp_path)


SMALLER = {"--steps": 4, "--warmup": 2, "--seeds": 2}
"""Options of the commands that need minutes -> numbers with which the same commands need seconds."""


def smaller(words: list[str]) -> list[object]:
    """Return the words of a command with smaller numbers.

    >>> smaller(["graph", "learn", "--steps", "200"])
    ['graph', 'learn', '--steps', 4]
    """
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


@pytest.mark.long
@pytest.mark.parametrize("page", ["graph", "compare"])
def test_the_commands_that_need_minutes_run_with_smaller_numbers(page: str, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    blocks = [
        block for block in blocks_of((DOCS / "howto" / f"{page}.md").read_text()) if "needs minutes" in block.mark
    ]
    assert blocks
    if page == "graph":
        (tmp_path / "graph.json").unlink()  # the command writes the graph, and replaces no other graph
    for words in commands_of(blocks[0].code):
        outcome = in_this_process([str(word) for word in smaller(words)], tmp_path)
        assert outcome.code == 0, (words, outcome)


def test_a_block_with_an_option_that_does_not_exist_is_noticed() -> None:
    (block,) = blocks_of(
        "<!-- not run: needs a cluster -->\n```bash\nskillshard shard corpus/ --tags tags --outt shards\n```\n"
    )
    with pytest.raises(AssertionError, match="no option --outt"):
        check_unrun(block, "page, line 2")


def test_a_block_that_is_not_run_needs_a_known_reason() -> None:
    (block,) = blocks_of("<!-- not run: too slow -->\n```bash\nskillshard shard corpus/\n```\n")
    with pytest.raises(AssertionError, match="too slow"):
        check_unrun(block, "page, line 2")


def test_output_that_is_not_printed_is_noticed() -> None:
    check_output("a 1\n...\nc 3\n", "a   1\nb 2\nc 3\n", "page, line 2")
    with pytest.raises(AssertionError, match="'c 3' is missing"):
        check_output("c 3\na 1\n", "a 1\nb 2\n", "page, line 2")


def test_every_public_name_stands_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    named = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", pages, flags=re.M)}
    public = (
        {*ss.__all__, *ss.policies.__all__, *ss.taggers.__all__} - {"errors", "policies", "taggers"} - {*dir(ss.errors)}
    )
    assert public <= named
    assert {"skillshard.errors", "skillshard.torch", "skillshard.hf", "skillshard.lightning"} <= set(
        re.findall(r"^::: (\S+)$", pages, flags=re.M)
    )


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if not path.name.startswith("_")]
    assert [page for page in pages if page not in re.findall(r"[\w/.-]+\.md", navigation)] == []


def test_every_how_to_page_stands_in_the_list_of_how_to_pages() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "howto" / "index.md").read_text())
    assert sorted(linked) == sorted({path.name for path in (DOCS / "howto").glob("*.md")} - {"index.md"})


def test_no_page_links_to_a_document_outside_of_the_site() -> None:
    """The site copies a linked file of the repository. A copied document would be a page without a place in the navigation."""
    links = [
        (path.name, link)
        for path in DOCS.rglob("*.md")
        for link in re.findall(r"\]\(([^)\s#:]+\.md)(?:#[^)\s]*)?\)", path.read_text())
        if not (path.parent / link).resolve().is_relative_to(DOCS)
    ]
    assert links == []


def test_the_tree_of_the_code_names_every_file_and_folder() -> None:
    named = set(re.findall(r"`(?:\w+/)?([\w.]+/?)`", (DOCS / "tree.md").read_text()))
    inside = {path.name + "/" * path.is_dir() for path in (REPOSITORY / "skillshard").iterdir()}
    assert inside - {"__init__.py", "__pycache__/", "py.typed"} <= named


EXTERNAL = {"arxiv.org", "github.com", "pytorch.org"}
"""Hosts that the documents link to. No test fetches a page, so add a new host here by hand after a look at the link."""


def test_external_links_lead_to_known_hosts_by_https() -> None:
    documents = [REPOSITORY / "README.md", *DOCS.rglob("*.md")]
    links = [link for path in documents for link in re.findall(r"\]\((\w+://[^)\s]+)\)", path.read_text())]
    assert {link.split("/")[0] for link in links} == {"https:"}
    assert {link.split("/")[2] for link in links} == EXTERNAL
