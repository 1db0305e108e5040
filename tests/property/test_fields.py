"""A field of a batch has the value that parsing the whole metadata gives, for every reader and after a resume."""

import pickle
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus.paths import MISSING, in_meta
from skillshard.errors import FieldError
from skillshard.mixing.fields import Fields, check_fields

# Few letters and a dot, so that keys and paths meet: as a plain key, as a key with dots, and nested.
KEYS = st.sampled_from(["a", "b", "meta", "a.b", "meta.a", "b.a", "meta.meta", "id", "text", "0"])
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
# The letters that JSON escapes or that take several bytes.
TEXTS = st.text('ab"\\\n\x00{}é😀', max_size=5)
VALUES = st.recursive(
    PLAIN | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
METAS = st.dictionaries(KEYS, VALUES, max_size=4)
# "id" is the id of the sample and not of the metadata.
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(".".join).filter(lambda path: path not in ("id", "text"))


def member(sample_id: str, meta: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"id": sample_id, "skill": "add", "meta": meta})


@given(metas=st.lists(METAS, max_size=4), paths=st.lists(PATHS, unique=True, max_size=3))
def test_a_field_is_the_value_that_parsing_the_whole_member_gives(
    metas: list[dict[str, Any]], paths: list[str]
) -> None:
    fields = Fields(tuple(paths), dict.fromkeys(paths, "none"))
    members = [member(str(number), meta) for number, meta in enumerate(metas)]
    columns = fields.read(members)
    # A shard that is mapped by Arrow gives memory views.
    assert orjson.dumps(fields.read(list(map(memoryview, members)))) == orjson.dumps(columns)
    assert list(columns) == paths
    assert Fields(("id", *paths), fields.defaults).read([member("q7", {})])["id"] == ["q7"]
    for path, values in columns.items():
        expected = [in_meta(meta, path) for meta in metas]
        # As JSON, because 1, 1.0 and True are equal in Python.
        assert orjson.dumps(values) == orjson.dumps(["none" if value is MISSING else value for value in expected])


@given(metas=st.lists(METAS, min_size=1, max_size=4), path=PATHS)
def test_a_field_that_a_sample_lacks_is_an_error_that_names_sample_skill_and_field(
    metas: list[dict[str, Any]], path: str
) -> None:
    members = [member(f"q{number}", meta) for number, meta in enumerate(metas)]
    lacking = [number for number, meta in enumerate(metas) if in_meta(meta, path) is MISSING]
    if not lacking:
        assert len(Fields((path,)).read(members)[path]) == len(metas)
        return
    with pytest.raises(FieldError) as error:
        Fields((path,)).read(members)
    assert str(error.value).startswith(f"sample 'q{lacking[0]}' of skill 'add' has no field {path!r}")


@given(metas=st.lists(METAS, max_size=3), path=PATHS)
def test_a_copy_of_the_fields_in_another_process_reads_the_same(metas: list[dict[str, Any]], path: str) -> None:
    members = [member(str(number), meta) for number, meta in enumerate(metas)]
    fields = Fields((path,), {path: None})
    expected = fields.read(members)
    assert orjson.dumps(pickle.loads(pickle.dumps(fields)).read(members)) == orjson.dumps(expected)


@pytest.mark.parametrize(
    ("fields", "defaults", "sentence"),
    [
        ("id", None, r"fields is 'id': give a tuple of dotted paths, such as \('id', 'meta.image'\)."),
        (("id", ""), None, r"fields is \('id', ''\): give a tuple of dotted paths"),
        (("id", 7), None, r"fields is \('id', 7\): give a tuple of dotted paths"),
        (
            ("text",),
            None,
            "fields has 'text', but the key 'text' of a batch is the text of the sample: leave it out, or give 'meta.text' for a field",
        ),
        (("skill",), None, "fields has 'skill', but the key 'skill' of a batch is the skill of the sample"),
        (("id", "id"), None, "fields has 'id' twice: give each path once."),
        (
            ("id", "meta.image"),
            {"meta.imgae": None},
            r"field_defaults has 'meta.imgae', which is not in fields \(did you mean 'meta.image'\?\). fields are: id, meta.image.",
        ),
        ((), {"a": 1}, "field_defaults has 'a', which is not in fields. fields are: none."),
    ],
)
def test_fields_that_are_no_paths_are_refused_in_a_sentence(fields: Any, defaults: Any, sentence: str) -> None:
    with pytest.raises(FieldError, match=f"^{sentence}"):
        check_fields(fields, defaults)
