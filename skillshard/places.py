"""Places: local paths and URIs as a single kind of name. Functions join places, and show places without secrets."""

import os
import posixpath
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from skillshard import stores, web
from skillshard.errors import StorageError, first_line, is_of_a_client
from skillshard.printable import printable


def text_of(place: str | os.PathLike[str]) -> str:
    """Return a place as a text.

    >>> text_of(Path("runs") / "1")
    'runs/1'

    Raises:
        StorageError: The value is no text and no path, such as None.
    """
    text = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(text, str):
        raise StorageError(
            f"{place!r} is no path: give a path as a text or as a pathlib.Path, or the address of a store."
        )
    return text


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URI that is not a local file.

    >>> is_remote("s3://bucket/key"), is_remote("/tmp/x"), is_remote("file:///tmp/x")
    (True, False, False)
    """
    text = text_of(place)
    return "://" in text and not text.startswith("file://")


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the local path of a place.

    Raises:
        StorageError: The place is remote.
    """
    text = text_of(place)
    if is_remote(text):
        raise StorageError(f"{text} is not on this machine: this needs a local directory.")
    return Path(text.removeprefix("file://"))


def join(place: str | os.PathLike[str], *parts: str) -> str:
    """Append parts to a place. The query of a URI stays at the end.

    >>> join("s3://bucket/run/", "tags.json"), join("out", "train", "0.tar")
    ('s3://bucket/run/tags.json', 'out/train/0.tar')
    >>> join("s3://bucket/run?region=us-east-1", "tags.json")
    's3://bucket/run/tags.json?region=us-east-1'
    """
    text = text_of(place)
    text, mark, query = text.partition("?") if is_remote(text) else (text, "", "")
    return "/".join([text.rstrip("/") or "/", *parts]) + mark + query


def inside(place: str | os.PathLike[str], name: str) -> str:
    """Return the place of a name that a listing of a directory gives. `relative` is the inverse.

    The special characters of the name are escaped in the URI of a store.

    >>> inside("s3://bucket/data?region=eu", "c#/a b.txt"), inside("https://host/data", "a b.txt"), inside("data", "c#/a b.txt")
    ('s3://bucket/data/c%23/a%20b.txt?region=eu', 'https://host/data/a b.txt', 'data/c#/a b.txt')
    """
    return join(place, stores.escaped_name(name) if stores.is_of_store(text_of(place)) else name)


def with_suffix(place: str, suffix: str) -> str:
    """Append a suffix to the last part of a place. The query of a URI stays at the end.

    >>> with_suffix("out/000", ".npy"), with_suffix("s3://bucket/out/000?region=eu", ".npy")
    ('out/000.npy', 's3://bucket/out/000.npy?region=eu')
    """
    text, mark, query = place.partition("?") if is_remote(place) else (place, "", "")
    return text + suffix + mark + query


def name(place: str | os.PathLike[str]) -> str:
    """Return the last part of a place, without the parameters of a URI.

    >>> name("s3://bucket/run/records/sort?region=eu"), name("out/records/sort/")
    ('sort', 'sort')
    """
    text = text_of(place)
    return (text.partition("?")[0] if is_remote(text) else text).rstrip("/").rpartition("/")[2]


def parent(place: str | os.PathLike[str]) -> str:
    """Return the directory of a place. The query of a URI stays at the end.

    >>> parent("s3://bucket/run/tags.json?region=eu"), parent("tags.json"), parent("/tags.json")
    ('s3://bucket/run?region=eu', '.', '/')
    """
    text = text_of(place)
    text, mark, query = text.partition("?") if is_remote(text) else (text, "", "")
    folder, slash, _ = text.rstrip("/").rpartition("/")
    return (folder or slash or ".") + mark + query


def relative(place: str, folder: str) -> str:
    """Return the path of a place inside a directory, without the escapes of a URI.

    >>> relative("s3://bucket/run/parts/0.parquet?region=eu", "s3://bucket/run?region=eu"), relative("out/train/0.tar", "out")
    ('parts/0.parquet', 'train/0.tar')
    >>> relative("s3://bucket/data/c%23/a.txt", "s3://bucket/data"), relative("data/c%23/a.txt", "data")
    ('c#/a.txt', 'c%23/a.txt')
    """
    path, base = (text.partition("?")[0] if is_remote(text) else text for text in (place, folder))
    name = path[len(base.rstrip("/")) + 1 :]
    return unquote(name) if stores.is_of_store(place) else name


def resolve(place: str, folder: str | os.PathLike[str]) -> str:
    """Return a place that is given relative to a directory. An absolute path or a URI stays as it is.

    >>> resolve("../shards", "s3://bucket/sets/more?region=eu"), resolve("../shards", "sets/more"), resolve("/data/S", "sets/more")
    ('s3://bucket/sets/shards?region=eu', 'sets/shards', '/data/S')
    """
    base = text_of(folder)
    if is_remote(place) or os.path.isabs(place):
        return place
    if not is_remote(base):
        return os.path.normpath(os.path.join(base.removeprefix("file://"), place))
    text, mark, query = base.partition("?")
    scheme, host = text.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(host, place))}{mark}{query}"


def relative_to(place: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """Return a place as a path relative to a directory, for a record beside which the place stays. `resolve` is the inverse.

    A URI of another scheme, host or query than the directory's stays a URI, without keys and signatures.

    >>> relative_to("s3://bucket/sets/shards?region=eu", "s3://bucket/sets/more?region=eu"), relative_to("sets/shards", "sets/more")
    ('../shards', '../shards')
    >>> relative_to("https://host/S", "sets/more")
    'https://host/S'
    """
    text, base = (text_of(path).removeprefix("file://") for path in (place, folder))
    if not is_remote(text) and not is_remote(base):
        return os.path.relpath(os.path.abspath(text), os.path.abspath(base))
    (path, _, query), (base_path, _, base_query) = text.partition("?"), base.partition("?")
    if is_remote(text) and is_remote(base) and query == base_query and _host(path) == _host(base_path):
        return posixpath.relpath(path.split("://", 1)[1], base_path.split("://", 1)[1])
    return public(text)


def _host(uri: str) -> list[str]:
    """Return the scheme and the host or bucket of a URI."""
    return uri.split("/", 3)[:3]


def public(place: str | os.PathLike[str]) -> str:
    """Return a place for a message, without the keys and signatures that a URI can hold.

    >>> public("s3://KEY:SECRET@bucket/S?region=us-east-1"), public("https://host/S/a.tar?sig=SECRET")
    ('s3://bucket/S?region=us-east-1', 'https://host/S/a.tar')
    """
    text = text_of(place)
    if not is_remote(text):
        return text
    try:
        parts = urlsplit(stores.escaped(text))
    except ValueError:  # a host such as "[::1", without its end
        return f"{text.partition('://')[0]}://(invalid address)"
    # A list of harmless names, not of secret names: any other parameter may be a signature or a token.
    shown = [(key, value) for key, value in parse_qsl(parts.query) if key in ("region", "scheme", "endpoint_override")]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(shown, safe=":/"), ""))


def filesystem(place: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a place and the path inside. All calls for one bucket of S3 get the same file system.

    Raises:
        StorageError: The file system cannot be opened, or the place can only be read over http.
    """
    text = text_of(place)
    if not is_remote(text):
        refuse_bytes(text)
        return pafs.LocalFileSystem(), os.path.abspath(text.removeprefix("file://"))
    try:
        return stores.clients.of(text)
    except (pa.ArrowInvalid, ValueError, OSError, ImportError) as error:
        if web.is_web(text):
            raise StorageError(f"{public(text)}: over http files can be read, not listed or written.") from error
        raise StorageError(f"{public(text)} cannot be opened: {first_line(error)}.") from error
    except (
        Exception
    ) as error:  # the client library of a store may raise any class; mistakes of this code are raised unchanged
        if not is_of_a_client(error):
            raise
        raise StorageError(
            f"{public(text)} cannot be opened: {first_line(error)}. Is the address right, and is there a network?"
        ) from error


def refuse_bytes(place: str) -> None:
    """Raise StorageError for a local name that is not UTF-8. Arrow and JSON cannot hold such a name."""
    try:
        place.encode()
    except UnicodeEncodeError:
        raise StorageError(
            f"{printable(place)}: the name is not valid UTF-8 (shown with \\x for each such byte). Rename the file or directory."
        ) from None
