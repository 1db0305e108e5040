"""Error for a row without a usable sample, and the reasons for counting such rows."""

from typing import Literal

Reason = Literal[
    "malformed-json",
    "malformed-row",
    "invalid-utf8",
    "missing-field",
    "wrong-type",
    "empty-text",
    "too-large",
    "truncated",
    "not-the-named-format",
    "unsupported",
    "unclear-members",
    "duplicate-id",
    "no-label",
    "copy",
]
RESTS: frozenset[Reason] = frozenset(("truncated", "not-the-named-format", "unsupported"))
"""Reasons that refuse the rest of a file, or a whole file. The number of refused rows is not known."""


class BadRecord(Exception):
    """Error for a row without a usable sample. The caller knows the place of the row and makes a `Rejection` of the error.

    Args:
        reason: Stable category, for counting.
        detail: Description of the fault, as the middle of a sentence.
        id: Id of the sample, if known.
        field: Path of the field with the fault, if the fault is of one field.
    """

    def __init__(self, reason: Reason, detail: str, id: str | None = None, field: str | None = None) -> None:
        super().__init__(reason, detail, id, field)
        self.reason: Reason = reason
        self.detail = detail
        self.id = id
        self.field = field
