"""Published corpora: the command of the documentation tags a miniature in the published layout, which is then sharded and mixed."""

import gzip
import json
import lzma
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard.shards.read import ShardSet
from skillshard.tags import Tags
from tests.commands import works
from tests.conftest import REPOSITORY
from tests.documents import commands_of

PAGE = REPOSITORY / "docs" / "howto" / "published-corpora.md"
NUM_ROWS = 12


def command_of(corpus: str) -> list[str]:
    """Return the words of the command of a section of the page, without "skillshard"."""
    section = re.search(rf"^## {re.escape(corpus)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.S | re.M)
    assert section is not None
    (block,) = re.findall(r"```bash\n(.*?)```", section[1], flags=re.S)
    ((program, *words),) = commands_of(block)
    assert program == "skillshard"
    return words


def put(place: str, data: bytes) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_bytes(data)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def sentence(kind: str, number: int) -> str:
    words = {"law": "The court hears appeal", "garden": "The seedlings need compost, says bed"}
    return f"{words.get(kind, f'A text about {kind}, of number')} {number} {chr(97 + number % 26) * 4}"


def parquet(place: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), place)


def natural_instructions() -> dict[str, int]:
    for task_number, category in ((1, "Question Generation"), (2, "Text Matching")):
        task = {
            "Contributors": ["Ada"],
            "Source": ["quoref"],
            "URL": ["https://example.org"],
            "Categories": [category],
            "Reasoning": [],
            "Definition": [f"In this task, you do {category}."],
            "Input_language": ["English"],
            "Output_language": ["English"],
            "Instruction_language": ["English"],
            "Domains": ["Wikipedia"],
            "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}],
            "Negative Examples": [{"input": "a", "output": "d", "explanation": "e"}],
            "Instances": [
                {
                    "id": f"task00{task_number}-{number}",
                    "input": sentence("law", number),
                    "output": [f"answer {number}"],
                }
                for number in range(NUM_ROWS)
            ],
            "Instance License": ["Apache 2.0"],
        }
        put(f"tasks/task00{task_number}_{category.split()[0].lower()}.json", json.dumps(task, indent=4).encode())
    return {"Question Generation": NUM_ROWS, "Text Matching": NUM_ROWS}


def pile_of_law() -> dict[str, int]:
    for split in ("train", "validation"):
        for source in ("courtlistener_opinions", "r_legaladvice"):
            rows = [
                {"url": "https://example.org", "created_timestamp": "2021", "text": sentence(source, number)}
                for number in range(NUM_ROWS)
            ]
            put(f"data/{split}.{source}.jsonl.xz", lzma.compress(lines(rows)))
    return {"train.courtlistener_opinions": NUM_ROWS, "train.r_legaladvice": NUM_ROWS}


def redpajama() -> dict[str, int]:
    def rows(source: str) -> bytes:
        return lines(
            [{"text": sentence(source, number), "meta": {"timestamp": str(number)}} for number in range(NUM_ROWS)]
        )

    put("redpajama/arxiv/arxiv_023827cd.jsonl", rows("arxiv"))
    zstd = pa.Codec("zstd").compress(rows("crawl"), asbytes=True)
    put("redpajama/common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst", zstd)
    put("redpajama/github/filtered_08cdfa755e6d4d89b673d5bd1acee5f6.sampled.jsonl", rows("github"))
    put("redpajama/README.md", b"# RedPajama")
    return {"arxiv": NUM_ROWS, "common_crawl": NUM_ROWS, "github": NUM_ROWS}


def alpaca() -> dict[str, int]:
    rows = [
        {"instruction": f"Explain {kind}.", "input": "" if number % 2 else kind, "output": sentence(kind, number)}
        for kind in ("law", "garden", "numbers")
        for number in range(NUM_ROWS)
    ]
    put("alpaca_data.json", json.dumps(rows, indent=4).encode())
    return {"": 3 * NUM_ROWS}


def tulu() -> dict[str, int]:
    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(message)), ("source", pa.string())])
    rows = [
        {
            "id": f"{source}_{number}",
            "messages": [
                {"content": f"What is {number}?", "role": "user"},
                {"content": sentence(source, number), "role": "assistant"},
            ],
            "source": source,
        }
        for source in ("ai2-adapt-dev/oasst1_converted", "ai2-adapt-dev/flan_v2_converted")
        for number in range(NUM_ROWS)
    ]
    parquet("data/train-00000-of-00001.parquet", rows, schema)
    return {"ai2-adapt-dev/flan_v2_converted": NUM_ROWS, "ai2-adapt-dev/oasst1_converted": NUM_ROWS}


def gsm8k() -> dict[str, int]:
    for config in ("main", "socratic"):
        for split in ("train", "test"):
            rows = [
                {"question": f"What is {number} + 1?", "answer": f"{config} {number + 1}\n#### {number + 1}"}
                for number in range(NUM_ROWS)
            ]
            parquet(f"gsm8k/{config}/{split}-00000-of-00001.parquet", rows)
    return {"main": NUM_ROWS, "socratic": NUM_ROWS}


def dolma() -> dict[str, int]:
    for source in ("pes2o", "reddit"):
        rows = [
            {
                "id": f"{source}-{number}",
                "text": sentence(source, number),
                "source": source,
                "added": "2023-04-24T00:00:00.000Z",
                "created": "2012-01-01T00:00:00.000Z",
                "metadata": {"abstract_language": "en", "year": 2012},
            }
            for number in range(NUM_ROWS)
        ]
        put(f"documents/{source}-0000.json.gz", gzip.compress(lines(rows), mtime=0))
    return {"pes2o": NUM_ROWS, "reddit": NUM_ROWS}


def fineweb() -> dict[str, int]:
    for dump in ("CC-MAIN-2013-20", "CC-MAIN-2024-10"):
        rows = [
            {
                "text": sentence(dump, number),
                "id": f"<urn:uuid:{dump}-{number}>",
                "dump": dump,
                "url": "https://example.org",
                "date": "2013-05-18T05:48:54Z",
                "file_path": "s3://commoncrawl/x.warc.gz",
                "language": "en",
                "language_score": 0.9,
                "token_count": 12,
            }
            for number in range(NUM_ROWS)
        ]
        parquet(f"data/{dump}/000_00000.parquet", rows)
    return {"CC-MAIN-2013-20": NUM_ROWS, "CC-MAIN-2024-10": NUM_ROWS}


def wet_record(kind: str, headers: dict[str, str], content: bytes) -> bytes:
    named = {"WARC-Type": kind, **headers, "Content-Type": "text/plain", "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"WARC/1.0\r\n{head}\r\n".encode() + content + b"\r\n\r\n"


def common_crawl() -> dict[str, int]:
    records = [wet_record("warcinfo", {"WARC-Filename": "x.warc.wet.gz"}, b"Software-Info: ia-web-commons\r\n")]
    for language in ("eng", "deu,eng"):
        for number in range(NUM_ROWS):
            headers = {
                "WARC-Target-URI": f"https://example.org/{number}",
                "WARC-Date": "2024-02-20T21:08:30Z",
                "WARC-Record-ID": f"<urn:uuid:{language}-{number}>",
                "WARC-Identified-Content-Language": language,
            }
            records.append(wet_record("conversion", headers, f"{sentence(language, number)}\n\nÜber uns\n".encode()))
    put("wet/CC-MAIN-20240220211055-00000.warc.wet.gz", b"".join(gzip.compress(r, mtime=0) for r in records))
    return {"deu,eng": NUM_ROWS, "eng": NUM_ROWS}


def banking77() -> dict[str, int]:
    rows = [(sentence(kind, number), kind) for kind in ("card_arrival", "pin_blocked") for number in range(NUM_ROWS)]
    table = "".join(f'"{text},\nhe said ""please""",{kind}\n' for text, kind in rows)
    put("train.csv", f"text,category\n{table}".encode())
    return {"card_arrival": NUM_ROWS, "pin_blocked": NUM_ROWS}


def source_code() -> dict[str, int]:
    for folder, suffix in (("engine", "py"), ("web", "js")):
        for number in range(NUM_ROWS):
            put(f"src/{folder}/deep/file_{number}.{suffix}", f"value = '{sentence(folder, number)}'\n".encode())
        put(f"src/{folder}/logo.png", b"\x89PNG")
    put("src/engine/__init__.py", b"")
    return {"engine": NUM_ROWS, "web": NUM_ROWS}


MINIATURES: dict[str, Callable[[], dict[str, int]]] = {
    "Natural Instructions": natural_instructions,
    "Pile of Law": pile_of_law,
    "RedPajama": redpajama,
    "Alpaca": alpaca,
    "Tulu": tulu,
    "GSM8K": gsm8k,
    "Dolma": dolma,
    "FineWeb": fineweb,
    "Common Crawl": common_crawl,
    "Banking77": banking77,
    "A tree of source code": source_code,
}


def test_every_corpus_of_the_page_has_a_miniature() -> None:
    assert re.findall(r"^## (.*)$", PAGE.read_text(), flags=re.M) == list(MINIATURES)


@pytest.mark.parametrize("corpus", MINIATURES)
def test_the_command_of_the_page_tags_the_corpus_for_shards_and_a_mix(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = MINIATURES[corpus]()
    words = command_of(corpus)
    works(*words, "--workers", 1)
    skills = {skill.name: skill.num_samples for skill in Tags.open("tags").manifest.skills}
    assert skills == expected if "" not in expected else sum(skills.values()) == expected[""]
    works("shard", words[2], "--tags", "tags", "--holdout", 0.2, "--out", "shards", "--workers", 1)
    assert "all as the manifest says" in works("verify", "shards")
    draws = works("mix", "shards", "--policy", "stratified", "--draws", 8).splitlines()
    assert {json.loads(draw)["skill"] for draw in draws} == set(skills)
    shards = ShardSet.open("shards")
    manifest = shards.manifest
    assert manifest.num_train + manifest.num_holdout == sum(skills.values())


def test_the_shards_of_natural_instructions_keep_the_fields_of_the_task_without_its_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    natural_instructions()
    works(*command_of("Natural Instructions"), "--workers", 1)
    works("shard", "tasks", "--tags", "tags", "--out", "shards", "--workers", 1)
    (tar, *_) = sorted(Path("shards/train").rglob("*.tar"))
    with tarfile.open(tar) as opened:
        member = next(name for name in opened.getnames() if name.endswith(".json"))
        file = opened.extractfile(member)
        assert file is not None
        record = orjson.loads(file.read())
    assert record["meta"]["Instance License"] == ["Apache 2.0"]
    assert not {"Positive Examples", "Negative Examples", "Instances"} & set(record["meta"])
    ((start, stop),) = record["meta"]["answer_spans"]
    assert stop - start == len("answer 0") or stop - start == len("answer 10")
