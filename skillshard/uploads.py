"""Write, copy and delete objects in stores (`s3://`, `gs://`, `abfs://`), by obstore. pyarrow reads the objects (storage.py).

Every object is put by one request, so an object is whole or missing, and a killed process leaves no unfinished upload behind. pyarrow
would send parts, and the store would charge for the parts of an upload that nobody finishes.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from skillshard import places, stores
from skillshard.errors import StorageError, first_line
from skillshard.extras import needed

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

MAX_OBJECT_BYTES = 5_000_000_000
"""Largest object that S3, Google Cloud Storage and Azure all take in one request: S3 allows 5 GB, and the others allow more."""
RETRY: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=20), "base": 2},
}
"""Tries of a request whose error may pass: answers 5xx and 429, resets and time-outs. obstore shortens the pauses at random."""


def can_be_written(place: str) -> bool:
    """Whether a place is local, or in a store that this module writes to.

    >>> can_be_written("out"), can_be_written("s3://bucket/out"), can_be_written("https://host/out")
    (True, True, False)
    """
    return not places.is_remote(place) or urlsplit(place).scheme in stores.SCHEMES


def refuse_unwritable(place: str) -> None:
    """Refuse a place that cannot be written, before any work begins.

    Raises:
        StorageError: The place can only be read.
        ExtraError: obstore is not installed.
    """
    if not can_be_written(place):
        raise StorageError(
            f"{places.public(place)} can be read, not written. Write to a local directory, or to a store with an address such as "
            "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER."
        )
    if places.is_remote(place):
        needed("stores", what=f"Writing to {urlsplit(place).scheme}://")


def put(place: str, source: Path | bytes) -> None:
    """Write an object, whole or not at all. An object of the same name is replaced.

    Args:
        place: URI of the object.
        source: Local file or bytes with the content.

    Raises:
        StorageError: The store does not take the object.
        ExtraError: obstore is not installed.
    """
    store, path = _store_of(place)
    _refuse_large(place, source)

    def send() -> None:
        import obstore

        obstore.put(store, path, source, use_multipart=False)

    _named(place, "written", send)


def create(place: str, data: bytes) -> bool:
    """Write an object unless its name is taken. Exactly one of several racing writers wins.

    Returns:
        Whether the name was free. A writer whose answer got lost on the way repeats its request and then gets False. The caller
        compares the content.

    Raises:
        StorageError: The store does not take the object.
        ExtraError: obstore is not installed.
    """
    store, path = _store_of(place)

    def send() -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    return _named(place, "written", send)


def copy(source: str, target: str) -> None:
    """Copy an object within its store. The bytes do not pass this machine.

    Raises:
        StorageError: The places are in different stores, or the store does not copy.
        ExtraError: obstore is not installed.
    """
    store, path = _store_of(source)
    target_store, target_path = _store_of(target)
    if store is not target_store:
        raise StorageError(f"{places.public(source)} cannot be copied to {places.public(target)} in another store.")

    def send() -> None:
        import obstore

        obstore.copy(store, path, target_path)

    _named(target, "written", send)


def delete(objects: Iterable[str]) -> None:
    """Delete objects. A missing object is no error.

    Raises:
        StorageError: The store does not delete an object.
        ExtraError: obstore is not installed.
    """
    paths: dict[str, list[str]] = {}
    for place in objects:
        paths.setdefault(_root_of(place), []).append(place)

    def send(store: "ObjectStore", names: list[str]) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):  # another process, which cleans the same directory, was first
            obstore.delete(store, names)

    for same_store in paths.values():
        store = _store_of(same_store[0])[0]
        names = [_store_of(place)[1] for place in same_store]
        _named(same_store[0], "deleted", lambda store=store, names=names: send(store, names))  # type: ignore[misc]  # defaults, not arguments


def _refuse_large(place: str, source: Path | bytes) -> None:
    num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
    if num_bytes > MAX_OBJECT_BYTES:
        raise StorageError(
            f"{places.public(place)} would have {num_bytes:,} bytes, and a store takes {MAX_OBJECT_BYTES:,} bytes in one request. Give "
            "a smaller `shard_bytes` or `partition_bytes`, or write to a local directory."
        )


def _named(place: str, verb: str, send: Callable[[], T]) -> T:
    """Send a request. An exception of the client becomes a sentence with the place."""
    from obstore.exceptions import BaseError

    try:
        return send()
    except FileNotFoundError as error:
        raise StorageError(
            f"{places.public(place)} cannot be {verb}: the bucket or the object does not exist. Make the bucket, or mend the address."
        ) from error
    except (BaseError, OSError, ValueError) as error:
        raise StorageError(
            f"{places.public(place)} cannot be {verb}: {_cause(error)}. What is finished is kept: mend the cause and run the same "
            "command again."
        ) from error


def _cause(error: BaseException) -> str:
    """Return the reason of a failed request in one line. A store's own message stands in a <Message> of the answer."""
    text = str(error)
    start = text.find("<Message>")
    if start >= 0:
        return text[start + len("<Message>") : text.find("</Message>", start)].strip().rstrip(".")
    return first_line(error)


def _root_of(place: str) -> str:
    """Return the address of the store of a place: scheme, bucket and parameters, without the path."""
    parts = urlsplit(stores.escaped(place))
    return urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))


def _store_of(place: str) -> tuple["ObjectStore", str]:
    """Return the store of a place and the path in the store."""
    refuse_unwritable(place)
    return _store(_root_of(place)), unquote(urlsplit(stores.escaped(place)).path).strip("/")


# One client for all objects of a store, because each client opens connections of its own.
@lru_cache(maxsize=8)
def _store(root: str) -> "ObjectStore":
    from obstore.exceptions import BaseError
    from obstore.store import S3Store, from_url

    parts = urlsplit(root)
    try:
        if parts.scheme != "s3":
            return from_url(urlunsplit((parts.scheme, parts.netloc, "", "", "")), retry_config=RETRY)
        parameters = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        user, _, bucket = parts.netloc.rpartition("@")
        endpoint = _endpoint(parameters)
        return S3Store(
            bucket,
            config=_s3_config(parameters, endpoint, user, bucket),
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config=RETRY,
            credential_provider=_profile_credentials(user),
        )
    except (BaseError, ValueError, OSError) as error:
        raise StorageError(f"{places.public(root)} cannot be opened for writing: {first_line(error)}.") from error


# A forked child must not use the connections of its parent.
os.register_at_fork(after_in_child=_store.cache_clear)


def _endpoint(parameters: dict[str, str]) -> str:
    """Return the address of an S3 server other than Amazon's, or an empty text."""
    override = parameters.get("endpoint_override")
    if override is None:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return override if "://" in override else f"{parameters.get('scheme', 'https')}://{override}"


def _s3_config(parameters: dict[str, str], endpoint: str, user: str, bucket: str) -> Any:
    config: dict[str, str] = {}
    if endpoint:
        config["endpoint"] = endpoint
    region = parameters.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or not endpoint:
        config["region"] = region or _region_of(bucket)
    if user:
        key, _, secret = user.partition(":")
        config["access_key_id"], config["secret_access_key"] = unquote(key), unquote(secret)
    return config


def _region_of(bucket: str) -> str:
    """Ask Amazon for the region of a bucket, as pyarrow does for reading."""
    try:
        return str(pafs.resolve_s3_region(bucket))
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"s3://{bucket}: the region of the bucket is not known ({first_line(error)}). Append ?region=REGION to the address, or set "
            "AWS_REGION."
        ) from error


def _profile_credentials(user: str) -> Any:
    """Return credentials of a profile file of AWS if boto3 is installed and no key is given. obstore reads variables and roles only."""
    if user or "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    try:
        import boto3  # type: ignore[import-untyped]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = boto3.Session()
    return None if session.get_credentials() is None else Boto3CredentialProvider(session)
