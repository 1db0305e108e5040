"""Parsing of the values of options: sizes, durations, numbers of skills, paths and names."""

import re
from collections.abc import Callable, Collection, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any, Literal, get_type_hints

import typer

BUILT_IN_PROXIES = ("tiny", "small")
"""Values of --proxy that name a built-in model instead of a directory."""
# Decimal and binary multiples, as in the names of disk sizes (MB) and memory sizes (MiB).
_BYTES_OF = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


def parse_size(text: str, option: str | None = None) -> int:
    """Parse a size in bytes. A usage error names `option`.

    >>> parse_size("8MB"), parse_size("64 MiB"), parse_size("1000")
    (8000000, 67108864, 1000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    num_bytes = int(float(match[1]) * _BYTES_OF.get(match[2].upper(), 0)) if match else 0
    if num_bytes < 1:
        raise typer.BadParameter(
            f"{text!r} is no size: give a positive number and a unit, such as 8MB, 64MiB or 1GB.", param_hint=option
        )
    return num_bytes


def parse_proportions(text: str) -> Literal["natural", "uniform"] | tuple[int, ...]:
    """Parse the proportions of a synthetic corpus.

    >>> parse_proportions("natural"), parse_proportions("1:2:4")
    ('natural', (1, 2, 4))
    """
    if text in ("natural", "uniform"):
        return text  # type: ignore[return-value]  # "natural" or "uniform"
    if not re.fullmatch(r"\d+(:\d+)*", text):
        raise typer.BadParameter(
            f"{text!r}: give 'natural', 'uniform' or numbers such as 1:2:4.", param_hint="--proportions"
        )
    return tuple(int(number) for number in text.split(":"))


def parse_duration(text: str, option: str | None = None) -> float:
    """Parse a duration into seconds. A usage error names `option`.

    >>> parse_duration("90s"), parse_duration("30m"), parse_duration("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise typer.BadParameter(
            f"{text!r} is no duration: give a number and s, m or h, such as 90s or 30m.", param_hint=option
        )
    return seconds


def parse_skills(text: str) -> int | Literal["auto"]:
    """Parse a number of skills.

    >>> parse_skills("auto"), parse_skills("9")
    ('auto', 9)
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"-?\d+", text):
        raise typer.BadParameter(f"{text!r}: give a number, or 'auto'.", param_hint="--skills")
    return int(text)


def parse_range(text: str) -> tuple[int, int]:
    """Parse the smallest and the largest number of skills to try.

    >>> parse_range("2:64")
    (2, 64)
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise typer.BadParameter(f"{text!r}: give the least and the most, such as 2:64.", param_hint="--skills-range")
    return int(match[1]), int(match[2])


def split_names(values: Sequence[str], known: Collection[str]) -> list[str]:
    """Split the values of a repeated option into names. A value that is a known name stays whole, others split at commas.

    >>> split_names(["add,carry", "question, answer"], ("add", "carry", "question, answer"))
    ['add', 'carry', 'question, answer']
    """
    names = set(known)
    return [name for value in values for name in ([value] if value in names else _parts(value))]


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def path_on_all_nodes(text: str) -> Path:
    """Parse a path that every node of a Ray cluster must see under the same name."""
    return Path(text)


def place_on_all_nodes(text: str) -> str:
    """Parse a path or URI that every node of a Ray cluster must see under the same name."""
    return text


def proxy_on_all_nodes(text: str) -> str:
    """Parse the name of a built-in proxy, or a directory that every node must see under the same name."""
    return text


def parse_out(text: str) -> str:
    """Parse a place to write to: a directory on this machine, a directory that all nodes share, or a URI of a store."""
    if "://" not in text:
        return text
    from skillshard import places, uploads

    if uploads.can_be_written(text):
        return text
    raise typer.BadParameter(
        f"{places.public(text)} can be read, not written. Give a directory, or the address of a store: s3://, gs:// or abfs://."
    )


def parse_local_out(text: str) -> Path:
    """Parse a directory to write to on this machine."""
    if "://" in text:
        scheme = text.partition("://")[0]
        raise typer.BadParameter(
            f"an address such as {scheme}:// cannot be written by this command. Give a directory.", param_hint="--out"
        )
    return Path(text)


_ON_ALL_NODES = (path_on_all_nodes, place_on_all_nodes, proxy_on_all_nodes, parse_out, parse_local_out)


def names_on_all_nodes(verb: Callable[..., None]) -> list[str]:
    """List the arguments of a verb that are paths which must be absolute in a Ray job. Their parsers mark them."""
    hints = get_type_hints(verb, include_extras=True)
    return [
        name
        for name, hint in hints.items()
        if any(getattr(info, "parser", None) in _ON_ALL_NODES for info in getattr(hint, "__metadata__", ()))
    ]


def relative_paths(command: Any, arguments: list[str]) -> list[str]:
    """List the relative paths among the paths that must have the same meaning on all nodes."""
    values = command.make_context(command.name, list(arguments), resilient_parsing=True).params
    names = names_on_all_nodes(unwrap(command.callback))
    paths = [values.get(name) for name in names if not (name == "proxy" and values.get(name) in BUILT_IN_PROXIES)]
    places = [place for value in paths for place in (value if isinstance(value, list | tuple) else [value])]
    return [str(place) for place in places if place is not None and not _is_absolute(str(place))]


def _is_absolute(place: str) -> bool:
    """Return whether a place has the same meaning on all nodes: an absolute path, a URI, or a name of the Hugging Face Hub."""
    is_name = place.startswith("hf:") and place[3:4] not in ("", ".", "~")
    return "://" in place or place.startswith("/") or is_name
