"""A corpus that is tokenized already: the ids and labels that a trainer gets are those of the rows, in every format."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import skillshard as ss
from skillshard import taggers
from skillshard.corpus import ANSWER_SPANS, Corpus, FieldMapping, Rejection, Sample, read_partition
from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.token_ids import NOT_LEARNED, ids_of_text, offsets_of_text
from skillshard.errors import CorpusError, ShardError, TokensError
from skillshard.loss import answer_tokens
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import proportional
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import append_shards, write_shards
from skillshard.verification import verify
from tests.commands import fails, works
from tests.conftest import HERE, lines, tree

VOCAB = 50_000
MAPPING = FieldMapping(token_ids="input_ids", token_labels="labels", vocab_size=VOCAB)
SKILLS = ("web", "code", "math")
Row = dict[str, Any]


def row_of(number: int, prefix: str = "r") -> Row:
    """Make a row of 1 to 40 ids, 0 and the last id of the vocabulary among them, with answers at several places."""
    num = 1 + number * 7 % 40
    ids = [number * 7919 % VOCAB if place else (0, VOCAB - 1, 17)[number % 3] for place in range(num)]
    ids = [(token + place * 104_729) % VOCAB if place else token for place, token in enumerate(ids)]
    learned = [(place + number) % 5 != 0 or num == 1 for place in range(num)]
    labels = [token if bit else NOT_LEARNED for token, bit in zip(ids, learned, strict=True)]
    return {"id": f"{prefix}{number}", "input_ids": ids, "labels": labels, "source": SKILLS[number % 3]}


ROWS = [row_of(number) for number in range(90)]


def table_of(rows: list[Row], ids: pa.DataType, labels: pa.DataType | None = None) -> pa.Table:
    schema = pa.schema(
        {"id": pa.string(), "input_ids": ids, "labels": labels or pa.list_(pa.int64()), "source": pa.string()}
    )
    return pa.Table.from_pylist(rows, schema=schema)


def write_jsonl(folder: Path, rows: list[Row]) -> None:
    (folder / "0.jsonl").write_bytes(lines(rows[:40]))
    (folder / "1.jsonl").write_bytes(lines(rows[40:]))


def parquet_of(ids: pa.DataType, labels: pa.DataType | None = None) -> Callable[[Path, list[Row]], None]:
    def write(folder: Path, rows: list[Row]) -> None:
        pq.write_table(table_of(rows, ids, labels), folder / "0.parquet", row_group_size=20)

    return write


def write_arrow(folder: Path, rows: list[Row]) -> None:
    table = table_of(rows, pa.large_list(pa.uint32()))
    with pa.ipc.new_file(folder / "0.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=16)


def write_stream(folder: Path, rows: list[Row]) -> None:
    table = table_of(rows, pa.list_(pa.int32()))
    with pa.ipc.new_stream(folder / "0.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=16)


def write_datasets(folder: Path, rows: list[Row]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))


def write_hive(folder: Path, rows: list[Row]) -> None:
    for skill in SKILLS:
        own = [
            {name: value for name, value in row.items() if name != "source"} for row in rows if row["source"] == skill
        ]
        (folder / f"source={skill}").mkdir()
        pq.write_table(pa.Table.from_pylist(own), folder / f"source={skill}" / "0.parquet")


FORMATS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": write_jsonl,
    "parquet": parquet_of(pa.list_(pa.int64())),
    "parquet of uint16": parquet_of(pa.list_(pa.uint16()), pa.list_(pa.int32())),
    "parquet of a large list": parquet_of(pa.large_list(pa.int32()), pa.large_list(pa.int32())),
    "arrow file": write_arrow,
    "arrow stream": write_stream,
    "datasets": write_datasets,
    "hive folders": write_hive,
}


def shard_rows(
    folder: Path,
    rows: list[Row],
    write: Callable[[Path, list[Row]], None] = write_jsonl,
    mapping: FieldMapping = MAPPING,
) -> ShardSet:
    (folder / "corpus").mkdir(parents=True)
    write(folder / "corpus", rows)
    opened = Corpus.open(folder / "corpus", fields=mapping)
    tags = taggers.tag_corpus(opened, taggers.metadata("source"), folder / "tags", backend=HERE, partition_bytes=4000)
    return write_shards(opened, tags, folder / "shards", holdout=0.0, backend=HERE)


@pytest.fixture(scope="module")
def set_of_ids(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet]:
    folder = tmp_path_factory.mktemp("ids")
    shards = shard_rows(folder, ROWS)
    return shards, write_tokens(shards, None, folder / "tokens", backend=HERE)


def packed_of(
    shards: ShardSet, tokens: TokenSet, ledger: Path, packing: str, block_tokens: int, separator: str | None = None
) -> PackedTokens:
    mixer = Mixer(shards, proportional(), ledger=ledger, round_draws=32, repeat="stop", fields=("id",))
    return PackedTokens(mixer, tokens, block_tokens=block_tokens, separator=separator, packing=packing)


def delivered(stream: PackedTokens) -> dict[str, tuple[list[int], list[int]]]:
    """Return the ids and the labels of each sample of a stream, by the id of the sample."""
    samples: dict[str, tuple[list[int], list[int]]] = {}
    for batch in stream.batches(7):
        is_token = batch.draw >= 0
        index = np.searchsorted(batch.sample_draw, batch.draw[is_token])
        columns = (index, batch.input_ids[is_token], batch.labels[is_token])
        for sample, token, label in zip(*(column.tolist() for column in columns), strict=True):
            ids, labels = samples.setdefault(batch.fields["id"][sample], ([], []))
            ids.append(token)
            labels.append(label)
    return samples


def expected(rows: list[Row]) -> dict[str, tuple[list[int], list[int]]]:
    return {row["id"]: (row["input_ids"], row["labels"]) for row in rows}


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("form", FORMATS)
def test_each_sample_comes_with_its_own_ids_and_labels(form: str, tmp_path: Path) -> None:
    shards = shard_rows(tmp_path, ROWS, FORMATS[form])
    tokens = write_tokens(shards, None, tmp_path / "tokens", backend=HERE)
    assert delivered(packed_of(shards, tokens, tmp_path / "one", "one", 40)) == expected(ROWS)
    assert delivered(packed_of(shards, tokens, tmp_path / "concat", "concat", 16)) == expected(ROWS)
    assert verify(tmp_path / "tokens")[0] == [] and verify(tmp_path / "shards")[0] == []


def test_all_formats_give_the_same_samples(tmp_path: Path) -> None:
    for form, write in FORMATS.items():
        (tmp_path / form).mkdir()
        write(tmp_path / form, ROWS)
        corpus = Corpus.open(tmp_path / form, fields=MAPPING)
        rows = [row for part in corpus.partitions() for row in read_partition(part, corpus.reading())]
        assert {row.id: row for row in rows} == {
            row["id"]: Sample(
                row["id"],
                " ".join(map(str, row["input_ids"])),
                {"source": row["source"], ANSWER_SPANS: rows_spans(row)},
            )
            for row in ROWS
        }


def rows_spans(row: Row) -> list[list[int]]:
    """Return the spans of a row by another way than the code: by the characters of each learned token."""
    marked = "".join(
        ("x" if label != NOT_LEARNED else "-") * len(str(token))
        + ("x" if label != NOT_LEARNED and after != NOT_LEARNED else "-")
        for token, label, after in zip(row["input_ids"], row["labels"], [*row["labels"][1:], NOT_LEARNED], strict=True)
    )
    edges = [
        place for place in range(len(marked)) if (marked[place] == "x") != (place > 0 and marked[place - 1] == "x")
    ]
    return [[edges[place], edges[place + 1]] for place in range(0, len(edges), 2)]


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1).filter(
        lambda tokens: any(bit for _, bit in tokens)
    )
)
def test_the_text_and_the_spans_of_any_row_give_the_ids_and_the_labels_back(tokens: list[tuple[int, bool]]) -> None:
    ids, learned = [token for token, _ in tokens], [bit for _, bit in tokens]
    row = {"id": 1, "x": {"ids": ids}, "mask": learned}
    sample = RowFields(FieldMapping(token_ids="x.ids", token_mask="mask"), "a.jsonl").sample(row, 0)
    assert ids_of_text(sample.text) == ids
    offsets = offsets_of_text(sample.text)
    assert [int(sample.text[start:stop]) for start, stop in offsets.tolist()] == ids
    assert answer_tokens(offsets, [(start, stop) for start, stop in sample.meta[ANSWER_SPANS]]).tolist() == learned


def test_rows_without_labels_are_learned_whole_and_keep_no_mask(tmp_path: Path) -> None:
    shards = shard_rows(tmp_path, ROWS, mapping=FieldMapping(token_ids="input_ids", drop="labels"))
    tokens = write_tokens(shards, None, tmp_path / "tokens", vocab_size=VOCAB, backend=HERE)
    assert tokens.answers is None
    whole = {identity: (ids, ids) for identity, (ids, _) in expected(ROWS).items()}
    assert delivered(packed_of(shards, tokens, tmp_path / "run", "concat", 16)) == whole


def test_padding_is_left_out_with_its_labels(tmp_path: Path) -> None:
    padded = []
    for number, row in enumerate(ROWS):
        before, after = number % 4, 3
        mask = [0] * before + [1] * len(row["input_ids"]) + [0] * after
        padded.append(
            row
            | {
                "input_ids": [7] * before + row["input_ids"] + [7] * after,
                "labels": [NOT_LEARNED] * before + row["labels"] + [NOT_LEARNED] * after,
                "attention_mask": mask,
            }
        )
    mapping = FieldMapping(
        token_ids="input_ids", token_labels="labels", attention_mask="attention_mask", vocab_size=VOCAB
    )
    shards = shard_rows(tmp_path, padded, mapping=mapping)
    tokens = write_tokens(shards, None, tmp_path / "tokens", backend=HERE)
    assert delivered(packed_of(shards, tokens, tmp_path / "run", "one", 40)) == expected(ROWS)


def test_a_vocabulary_beyond_16_bits_keeps_32_bits_and_a_separator_is_an_id(tmp_path: Path) -> None:
    rows = [{**row, "input_ids": [token + 90_000 for token in row["input_ids"]]} for row in ROWS]
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    shards = shard_rows(tmp_path, rows, mapping=FieldMapping(token_ids="input_ids", vocab_size=151_936))
    tokens = write_tokens(shards, None, tmp_path / "tokens", backend=HERE)
    assert tokens.manifest.ids is not None and tokens.manifest.ids.type == "uint32"
    stream = packed_of(shards, tokens, tmp_path / "run", "one", 64, separator="151643")
    assert delivered(stream) == {row["id"]: ([*row["input_ids"], 151_643],) * 2 for row in rows}
    for wrong in ("151936", "-1", "1.0", "<|endoftext|>", "²"):
        with pytest.raises(TokensError, match=r"a token is its id in decimal digits, below 151,936, such as '0', got"):
            packed_of(shards, tokens, tmp_path / wrong, "one", 64, separator=wrong)


def test_blocks_of_one_skill_and_counts_alone_work_without_a_tokenizer(
    set_of_ids: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    shards, tokens = set_of_ids
    unit: dict[str, Any] = {"block_tokens": 32, "separator": "0"}
    mixer = Mixer(shards, proportional(), ledger=tmp_path / "run", round_draws=20, unit="blocks", tokens=tokens, **unit)
    batch = PackedTokens(mixer, tokens, packing="skill", **unit).batch(0, 4)
    assert (batch.skill == batch.skill[:, :1]).all()
    counts = write_tokens(shards, None, tmp_path / "counts", counts_only=True, backend=HERE)
    assert counts.manifest.num_train == tokens.manifest.num_train == sum(len(row["input_ids"]) for row in ROWS)


def test_two_corpora_of_a_corpus_file_have_one_vocabulary_and_a_corpus_without_labels_is_learned_whole(
    tmp_path: Path,
) -> None:
    for name, part in (("a", ROWS[:40]), ("b", ROWS[40:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jsonl").write_bytes(lines(part))
    text = (
        "corpora:\n  a: {files: a, token_ids: input_ids, token_labels: labels, vocab_size: 50000}\n"
        "  b: {files: b, token_ids: input_ids, drop: labels, vocab_size: 50000}\n"
    )
    (tmp_path / "corpus.yaml").write_text(text)
    corpus = Corpus.open(tmp_path / "corpus.yaml")
    tags = taggers.tag_corpus(corpus, taggers.metadata("source"), tmp_path / "tags", backend=HERE)
    shards = write_shards(corpus, tags, tmp_path / "shards", holdout=0.0, backend=HERE)
    tokens = write_tokens(shards, None, tmp_path / "tokens", backend=HERE)
    whole = {f"a/{row['id']}": (row["input_ids"], row["labels"]) for row in ROWS[:40]}
    whole |= {f"b/{row['id']}": (row["input_ids"], row["input_ids"]) for row in ROWS[40:]}
    assert delivered(packed_of(shards, tokens, tmp_path / "run", "concat", 16)) == whole

    (tmp_path / "corpus.yaml").write_text(text.replace("drop: labels, vocab_size: 50000", "vocab_size: 60000"))
    with pytest.raises(CorpusError, match=r"the corpora differ in 'vocab_size' \(a 50,000, b 60,000\)"):
        Corpus.open(tmp_path / "corpus.yaml").reading()
    (tmp_path / "corpus.yaml").write_text(
        text.replace("token_ids: input_ids, drop: labels, vocab_size: 50000", "text_field: id")
    )
    with pytest.raises(CorpusError, match=r"the corpus 'b' has texts, and the corpus 'a' has token ids"):
        Corpus.open(tmp_path / "corpus.yaml").reading()


def test_appended_ids_continue_a_set_of_ids_alone(set_of_ids: tuple[ShardSet, TokenSet], tmp_path: Path) -> None:
    shards, _ = set_of_ids
    new = [row_of(number, "new-") for number in range(100, 130)]
    (tmp_path / "new").mkdir()
    write_jsonl(tmp_path / "new", new)
    corpus = Corpus.open(tmp_path / "new", fields=MAPPING)
    tags = taggers.tag_corpus(corpus, taggers.metadata("source"), tmp_path / "tags", backend=HERE)
    appended = append_shards(shards, corpus, tags, tmp_path / "appended", backend=HERE)
    tokens = write_tokens(appended, None, tmp_path / "tokens", backend=HERE)
    assert delivered(packed_of(appended, tokens, tmp_path / "run", "concat", 16)) == expected([*ROWS, *new])

    for number, (mapping, words) in enumerate(
        (
            (FieldMapping(text="{source} {id}", columns=("source",)), "texts"),
            (FieldMapping(token_ids="input_ids", vocab_size=VOCAB), "token ids without labels, below 50,000"),
            (FieldMapping(token_ids="input_ids", token_labels="labels"), "token ids with labels"),
        )
    ):
        other = Corpus.open(tmp_path / "new", fields=mapping)
        other_tags = taggers.tag_corpus(other, taggers.metadata("source"), tmp_path / f"tags-{number}", backend=HERE)
        with pytest.raises(
            ShardError, match=rf"are token ids with labels, below 50,000, and the new samples are {words}:"
        ):
            append_shards(shards, other, other_tags, tmp_path / "refused", backend=HERE)


# -------------------------------------------------------------------------------------------------------- bad rows

LABELS, MASK = {"token_labels": "labels"}, {"token_mask": "mask"}
BAD: dict[str, tuple[Row, dict[str, Any], str]] = {
    "missing": (
        {"inputs": [1]},
        {},
        "no field 'input_ids' for `token_ids` (did you mean 'inputs'?); the row has inputs",
    ),
    "null": ({"input_ids": None}, {}, "the field 'input_ids' of `token_ids` must be an array of integers, got null"),
    "text": (
        {"input_ids": "1 2"},
        {},
        "the field 'input_ids' of `token_ids` must be an array of integers, got a string",
    ),
    "empty": ({"input_ids": []}, {}, "the token ids in 'input_ids' are an empty array"),
    "float": (
        {"input_ids": [1, 2.0]},
        {},
        "the field 'input_ids' of `token_ids` must be an array of integers, got a number (2.0) at position 1",
    ),
    "null inside": (
        {"input_ids": [1, None]},
        {},
        "the field 'input_ids' of `token_ids` must be an array of integers, got null at position 1",
    ),
    "boolean": (
        {"input_ids": [True]},
        {},
        "the field 'input_ids' of `token_ids` must be an array of integers, got a boolean (True) at position 0",
    ),
    "a batch": (
        {"input_ids": [[1, 2]]},
        {},
        "the field 'input_ids' of `token_ids` must be an array of integers, got an array at position 0",
    ),
    "negative": ({"input_ids": [5, -1]}, {}, "the token id -1 at position 1 of 'input_ids' is negative"),
    "beyond": (
        {"input_ids": [5, 100, 101]},
        {"vocab_size": 100},
        "the token id 100 at position 1 of 'input_ids' is too large, expected ids below 100, the `vocab_size`",
    ),
    "beyond 32 bits": (
        {"input_ids": [2**32]},
        {},
        "the token id 4,294,967,296 at position 0 of 'input_ids' is too large, expected ids below 4,294,967,296",
    ),
    "beyond 64 bits": (
        {"input_ids": [7, 2**64 - 1, -1]},
        {},
        "the token id 18,446,744,073,709,551,615 at position 1 of 'input_ids' is too large, expected ids below 4,294,967,296",
    ),
    "labels beyond 64 bits": (
        {"input_ids": [1, 2], "labels": [1, 2**63]},
        LABELS,
        "the label 9,223,372,036,854,775,808 at position 1 of 'labels' is neither the token id 2 nor -100. A label stands at the position of its "
        "token, because models and trainers shift the labels themselves",
    ),
    "labels missing": (
        {"input_ids": [1]},
        LABELS,
        "no field 'labels' for `token_labels`; the row has input_ids",
    ),
    "labels null": (
        {"input_ids": [1], "labels": None},
        LABELS,
        "the field 'labels' of `token_labels` must be an array of integers, got null",
    ),
    "labels of another length": (
        {"input_ids": [1, 2], "labels": [1]},
        LABELS,
        "the field 'labels' has 1 values, but 'input_ids' has 2 token ids",
    ),
    "shifted labels": (
        {"input_ids": [1, 2, 3], "labels": [2, 3, -100]},
        LABELS,
        "the label 2 at position 0 of 'labels' is neither the token id 1 nor -100. A label stands at the position of its token, because models "
        "and trainers shift the labels themselves",
    ),
    "nothing learned": (
        {"input_ids": [1], "labels": [-100]},
        LABELS,
        "no token is learned: the labels in 'labels' mark no answer",
    ),
    "mask of other values": (
        {"input_ids": [1, 2], "mask": [1, 2]},
        MASK,
        "the mask in 'mask' must have the values 0 and 1, got 2 at position 1",
    ),
    "mask beyond 64 bits": (
        {"input_ids": [1, 2], "mask": [-1, 2**63]},
        MASK,
        "the mask in 'mask' must have the values 0 and 1, got -1 at position 0",
    ),
    "only padding": (
        {"input_ids": [1, 2], "mask": [0, 0]},
        {"attention_mask": "mask"},
        "the mask in 'mask' is 0 for every token",
    ),
    "attention of another length": (
        {"input_ids": [1, 2], "mask": [1]},
        {"attention_mask": "mask"},
        "the field 'mask' has 1 values, but 'input_ids' has 2 token ids",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_fault(case: str) -> None:
    row, arguments, sentence = BAD[case]
    with pytest.raises(BadRecord) as error:
        RowFields(FieldMapping(token_ids="input_ids", **arguments), "a.jsonl").sample({"id": 1, **row}, 0)
    assert error.value.detail.replace("the row has id, ", "the row has ") == sentence
    assert (error.value.id, error.value.reason) == ("1", "malformed-row") and error.value.field in {
        *row,
        "input_ids",
        "labels",
    }


def test_a_bad_row_of_a_table_is_named_with_file_and_row_and_can_be_set_aside(tmp_path: Path) -> None:
    rows = [*ROWS[:30], {**ROWS[30], "labels": ROWS[30]["labels"][1:]}, *ROWS[31:]]
    (tmp_path / "corpus").mkdir()
    FORMATS["parquet"](tmp_path / "corpus", rows)
    options = ("--field", "source", "--token-ids", "input_ids", "--token-labels", "labels")
    tag = ("tag", "metadata", tmp_path / "corpus", *options, "--out", tmp_path / "tags", "--workers", 1)
    num = len(ROWS[30]["input_ids"])
    assert fails(*tag) == (
        f"0.parquet row 31: the field 'labels' has {num - 1:,} values, but 'input_ids' has {num:,} token ids. Mend the row, or set such samples "
        "aside with --on-bad-sample set-aside."
    )
    shutil.rmtree(tmp_path / "tags")
    works(*tag, "--on-bad-sample", "set-aside", "--max-set-aside", 0.1)
    assert ss.Tags.open(tmp_path / "tags").manifest.num_tagged == len(ROWS) - 1


def test_a_float_column_of_a_table_is_no_column_of_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "input_ids": [[1.0, 2.0]], "source": ["x"]}), tmp_path / "0.parquet")
    corpus = Corpus.open(tmp_path, fields=FieldMapping(token_ids="input_ids"))
    (row,) = read_partition(corpus.partitions()[0], corpus.reading())
    assert isinstance(row, Rejection) and row.field == "input_ids" and "got a number (1.0) at position 0" in row.detail


# ------------------------------------------------------------------------------------------------ arguments and verbs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"token_ids": "a", "text_field": "b"}, "`text_field` and `token_ids` both make the text of a sample"),
        ({"token_ids": "a", "messages": "b"}, "`messages` and `token_ids` both make the text of a sample"),
        ({"token_labels": "b"}, "`token_labels` belongs to samples that are tokenized already"),
        ({"vocab_size": 3}, "`vocab_size` belongs to samples that are tokenized already"),
        ({"token_ids": "a", "token_labels": "b", "token_mask": "c"}, "both mark the learned tokens"),
        ({"token_ids": "a", "answer": "b"}, "`answer` and `token_ids` do not go together"),
        ({"token_ids": "a", "vocab_size": 0}, "`vocab_size` is 0: give the number of ids of the vocabulary"),
        ({"token_ids": ""}, "`token_ids` needs the path of a field"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CorpusError) as error:
        FieldMapping(**arguments)
    assert sentence in str(error.value)


def test_the_mapping_of_ids_is_recorded_and_read_again() -> None:
    mapping = FieldMapping(token_ids="a", token_mask="b", attention_mask="c", vocab_size=9)
    assert mapping.to_json() == {
        "id_field": "id",
        "token_ids": "a",
        "token_mask": "b",
        "attention_mask": "c",
        "vocab_size": 9,
    }
    assert FieldMapping(**mapping.to_json()) == mapping and mapping.marks_answers and not mapping.is_plain


def test_tokens_of_texts_and_of_ids_are_not_mixed_up(
    set_of_ids: tuple[ShardSet, TokenSet], shards: ShardSet, tmp_path: Path
) -> None:
    of_ids, _ = set_of_ids
    cases: list[tuple[ShardSet, Any, dict[str, Any], str]] = [
        (of_ids, "tokenizer.json", {}, "are token ids, and a tokenizer reads texts"),
        (shards, None, {}, "are texts: give `tokenizer`"),
        (shards, "tokenizer.json", {"vocab_size": 3}, "`vocab_size` is the size of a vocabulary without a tokenizer"),
        (of_ids, None, {"special_tokens": True}, "`special_tokens` is for texts"),
        (of_ids, None, {"answer_after": "="}, "`answer_after` is for texts"),
        (of_ids, None, {"prompt_field": "n"}, "`prompt_field` is for texts"),
        (of_ids, None, {"vocab_size": 0}, "`vocab_size` is 0: give the number of ids"),
    ]
    for source, tokenizer, arguments, sentence in cases:
        with pytest.raises(TokensError) as error:
            write_tokens(source, tokenizer, tmp_path / "T", backend=HERE, **arguments)
        assert sentence in str(error.value)
    with pytest.raises(
        TokensError,
        match=r"sample 'r\d+' has the token id 4\d,\d{3} at position \d+, but the ids of the vocabulary are below 40,000",
    ):
        write_tokens(of_ids, None, tmp_path / "T", vocab_size=40_000, backend=HERE)
    with pytest.raises(TokensError, match=r"and no tokenizer. Use the tokenizer that made the ids"):
        _ = set_of_ids[1].tokenizer


def test_ids_without_a_known_vocabulary_need_its_size(tmp_path: Path) -> None:
    shard_rows(tmp_path, ROWS, mapping=FieldMapping(token_ids="input_ids"))
    command = ("tokens", tmp_path / "shards", "--from-ids", "--out", tmp_path / "tokens")
    assert "was tagged without the size: give --vocab-size" in fails(*command)
    assert "as in the corpus" in works(*command, "--vocab-size", 60_000)
    assert "as in the corpus" in works("inspect", tmp_path / "tokens")


@pytest.mark.parametrize("way", [("embedding", "--skills", 2), ("loss", "--skills", 2)])
def test_taggers_that_read_texts_refuse_ids_at_once(way: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(lines(ROWS))
    sentence = fails("tag", *way, tmp_path / "0.jsonl", "--token-ids", "input_ids", "--out", tmp_path / "tags")
    assert sentence.startswith(f"Tagging by {way[0]} needs texts, and the samples of the corpus are token ids.")
    assert not (tmp_path / "tags").exists()


def test_ids_take_the_skills_of_tags_of_the_texts(tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['source']} {row['id']}"} for row in ROWS]
    (tmp_path / "0.jsonl").write_bytes(lines(rows))
    corpus, tags = tmp_path / "0.jsonl", tmp_path / "tags"
    works("tag", "embedding", corpus, "--skills", 2, "--out", tags, "--workers", 1)
    works("tag", "from", tags / "parts", corpus, "--token-ids", "input_ids", "--out", tmp_path / "same", "--workers", 1)
    before, after = ss.Tags.open(tags), ss.Tags.open(tmp_path / "same")
    assert [(row.id, row.skill) for row in before.rows(0)] == [(row.id, row.skill) for row in after.rows(0)]


# -------------------------------------------------------------------------------------------------------------- peek


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        (lambda row: row, ["--token-ids", "input_ids", "--token-labels", "labels", "--field", "source"]),
        (
            lambda row: {
                "tokens": row["input_ids"],
                "completion_mask": [int(label != NOT_LEARNED) for label in row["labels"]],
                "attention_mask": [1] * len(row["input_ids"]),
                "token_type_ids": [0] * len(row["input_ids"]),
                "text": "also a text",
            },
            [
                *("--id-from-row", "--token-ids", "tokens", "--token-mask", "completion_mask"),
                *("--attention-mask", "attention_mask", "--drop", "token_type_ids", "--field", "file.stem"),
            ],
        ),
    ],
)
def test_peek_prints_a_command_that_tags_token_ids(
    changed: Callable[[Row], Row], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(lines([changed(row) for row in ROWS]))
    shown = works("peek", "rows.jsonl")
    program, *words = shlex.split(shown.splitlines()[-1])
    assert (program, words) == ("skillshard", ["tag", "metadata", "rows.jsonl", *options, "--out", "tags"])
    assert ("for the texts give --text-field text" in shown) == ("also a text" in shown)
    works(*words, "--workers", 1)
    assert ss.Tags.open("tags").manifest.num_tagged == len(ROWS)


def test_peek_names_the_rows_whose_labels_do_not_fit(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {**ROWS[5], "labels": ROWS[5]["input_ids"][1:]}, *ROWS[6:]]
    (tmp_path / "0.jsonl").write_bytes(lines(rows))
    assert "0.jsonl line 6: the field 'labels' has 35 values, but 'input_ids' has 36 token ids" in works(
        "peek", tmp_path
    )


# ------------------------------------------------------------------------------------------------- the same bytes


def test_workers_and_the_parts_of_an_array_write_the_same_tokens(
    set_of_ids: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    shards, tokens = set_of_ids
    command = ("tokens", shards.root, "--from-ids", "--out")
    works(*command, tmp_path / "two", "--workers", 2)
    for part in (2, 1, 3):
        works(*command, tmp_path / "array", "--stage", "count", "--tasks", f"{part}/3", "--workers", 1)
    works(*command, tmp_path / "array", "--workers", 1)
    assert tree(tmp_path / "two") == tree(tmp_path / "array") == tree(tokens.root)
