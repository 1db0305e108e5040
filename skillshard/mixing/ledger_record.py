"""The common part of all records of a ledger: immutable JSON with a schema and a checksum of its own content."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillshard import canonical

RecordType = TypeVar("RecordType", bound="LedgerRecord")


def _requires_checksum(schema: dict[str, Any]) -> None:
    """Require the checksum in the JSON Schema: a new record computes its checksum, and a record on disk always has a checksum."""
    schema["properties"]["checksum"].pop("default")
    schema["required"].append("checksum")


class LedgerRecord(BaseModel):
    """A record of a ledger: immutable, without unknown fields, with a single JSON form and a checksum of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_requires_checksum)

    checksum: str = Field(default="", description="digest of this record's JSON form without this field")

    @model_validator(mode="after")
    def _sealed(self) -> "LedgerRecord":
        checksum = canonical.digest(canonical.to_json(self._content()))
        if not self.checksum:
            object.__setattr__(self, "checksum", checksum)  # a new record; a model of pydantic is frozen for its users
        elif self.checksum != checksum:
            raise ValueError(
                f"the content has checksum {checksum}, and the record says {self.checksum}: it was changed"
            )
        return self

    def _content(self) -> dict[str, Any]:
        # Not by `model_dump`, which copies every list: lists may be long, and every read and every put computes the checksum.
        values = {**self.__dict__}
        del values["checksum"]
        return {
            "schema": values.pop("schema_version"),
            **{name: _plain(value) for name, value in values.items()},
        }

    def to_bytes(self) -> bytes:
        return canonical.to_json({**self._content(), "checksum": self.checksum})


def _plain(value: Any) -> Any:
    """Return the JSON form of a field. Most fields are plain JSON already, and a long list must not be copied."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return [item.model_dump() for item in value]
    return value


def check_numbers(name: str, values: "list[int] | list[float]", num: int, *, least: int) -> None:
    """Raise ValueError unless a list has a plausible number for each skill."""
    if len(values) != num:
        raise ValueError(f"{name} has {len(values):,} numbers for {num:,} skills")
    bad = [value for value in values if not least <= value < 2**62]
    if bad:
        raise ValueError(f"{name} holds {bad[0]}: expected numbers from {least} to 2**62")
