"""A remote shard set gives the stream of the local shard set, or a single clear error, and never wrong data."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from skillshard import canonical, places, storage, web
from skillshard.errors import ShardError, SkillshardError, StorageError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import proportional
from skillshard.shards import cache as cache_module
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset
from tests.commands import fails, skillshard, works
from tests.conftest import tree
from tests.remote.conftest import Through
from tests.remote.server import Between, Faults

DRAWS = 800
"""About two epochs of each skill."""


def mixer(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    return Mixer(shards, proportional(), ledger=ledger, **({"round_draws": 100} | arguments))


def stream(shards: ShardSet, ledger: Path) -> list[tuple[str, str]]:
    mixed = mixer(shards, ledger)
    batches = [mixed.batch(first, 50) for first in range(0, DRAWS, 50)]
    return [pair for batch in batches for pair in zip(batch.skill, batch.text, strict=True)]


@pytest.fixture(scope="module")
def local(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    return stream(shards, tmp_path_factory.mktemp("ledger"))


def nothing_is_left_over(cache: Path, timeout_s: float = 120) -> bool:
    """Return whether no download is under way. A thread that reads ahead may be about to find the file of another thread."""
    end = time.monotonic() + timeout_s
    while any(path.suffix == cache_module.PART for path in cache.iterdir()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ------------------------------------------------------------------------------------------------------------- all well


@pytest.mark.parametrize("cached", [True, False])
def test_a_remote_stream_is_the_local_one(
    place: str, cached: bool, shards: ShardSet, local: list[tuple[str, str]], tmp_path: Path
) -> None:
    remote = ShardSet.open(place, cache=tmp_path / "cache" if cached else None)
    assert remote.digest == shards.digest and remote.root == place
    assert stream(remote, tmp_path / "ledger") == local
    for skill, held in shards.holdout.items():
        assert list(remote.holdout[skill]) == list(held)
    if cached:
        assert nothing_is_left_over(tmp_path / "cache")
        assert all(canonical.digest(data) == name for name, data in tree(tmp_path / "cache").items())


@pytest.mark.parametrize("workers", [0, 2])
def test_forked_workers_read_remote_shards_while_their_parent_reads_ahead(
    place: str, workers: int, local: list[tuple[str, str]], tmp_path: Path
) -> None:
    mixed = mixer(ShardSet.open(place, cache=tmp_path / "cache"), tmp_path / "ledger")
    assert mixed.batch(0, 1).text == [local[0][1]]  # the read starts threads in this process, before the workers fork
    loader = DataLoader(MixedDataset(mixed), batch_size=50, num_workers=workers)
    texts = [text for batch, _ in zip(loader, range(DRAWS // 50), strict=False) for text in batch["text"]]
    assert texts == [text for _, text in local]


def test_inspect_verify_and_mix_take_a_remote_shard_set(place: str, shards: ShardSet, tmp_path: Path) -> None:
    assert [row.split() for row in works("inspect", place).splitlines()[2:5]] == [
        row.split() for row in works("inspect", shards.root).splitlines()[2:5]
    ]
    verified = works("verify", place)
    assert "580 samples, all as the manifest says" in verified
    assert ("rejected/ cannot be listed over http" in verified) == web.is_web(place)
    options = ("--draws", 120, "--round-draws", 60)
    expected = works("mix", shards.root, *options, "--out", tmp_path / "local") and (tmp_path / "local").read_bytes()
    works("mix", place, *options, "--out", tmp_path / "a", "--cache", tmp_path / "cache", "--cache-size", "1MB")
    works("mix", place, *options, "--out", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == expected


def test_writing_to_a_web_server_is_refused_in_one_sentence(tmp_path: Path) -> None:
    outcome = skillshard("shard", tmp_path, "--tags", tmp_path, "--out", "https://host/S")
    assert outcome.code == 2
    message = re.sub(r"[\s│]+", " ", outcome.err)
    assert "https://host/S can be read, not written. Give a directory, or the address of a store" in message


# --------------------------------------------------------------------------------------------------------------- faults

PASSING = ("500", "503", "429", "408", "reset", "cut", "wrong", "longer", "other")
SDK_RETRIES = ("500", "503", "reset", "cut")
"""Faults that pyarrow's S3 client repeats by itself, so that the tests do not see the repetition."""


def first_two(fault: str) -> Faults:
    return lambda path, nth: fault if nth < 2 else None


@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_pass_are_survived(
    fault: str, between: tuple[Between, str], local: list[tuple[str, str]], tmp_path: Path
) -> None:
    server, place = between
    # Length and digest of the manifest are not known beforehand.
    manifest_is_checked = fault not in ("wrong", "longer", "other")
    server.faults = lambda path, nth: (
        fault if nth < 2 and (manifest_is_checked or not path.endswith("manifest.json")) else None
    )
    assert stream(ShardSet.open(place, cache=tmp_path / "cache"), tmp_path / "ledger") == local
    expected = {path: 1 if path.endswith("manifest.json") and not manifest_is_checked else 3 for path in server.asked}
    assert server.asked == expected and nothing_is_left_over(tmp_path / "cache")


@pytest.mark.parametrize("fault", ["500", "reset", "cut", "wrong"])
def test_faults_of_a_store_are_survived(
    fault: str, through: Through, local: list[tuple[str, str]], tmp_path: Path
) -> None:
    server, place = through("s3")
    server.faults = lambda path, nth: fault if nth < 1 and not path.endswith("manifest.json") else None
    assert stream(ShardSet.open(place, cache=tmp_path / "cache"), tmp_path / "ledger") == local
    assert nothing_is_left_over(tmp_path / "cache")


def test_a_server_that_hangs_is_given_up_and_asked_again(
    between: tuple[Between, str], local: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", 0.3)
    server, place = between
    server.faults = lambda path, nth: ("hang" if nth == 0 else "drip") if nth < 2 and "000000.tar" in path else None
    assert stream(ShardSet.open(place, cache=tmp_path / "cache"), tmp_path / "ledger") == local


LASTING = {
    "500": (StorageError, r"/add/\d+\.tar could not be read in 6 tries over \d+ s; the last one: HTTP Error 500.* Is there a network, and is the server well"),
    "429": (StorageError, r"could not be read in 6 tries .*HTTP Error 429"),
    "reset": (StorageError, r"could not be read in 6 tries .*(reset by peer|closed after)"),
    "cut": (StorageError, r"could not be read in 6 tries .*the connection closed after [\d,]+ of [\d,]+ bytes"),
    "hang": (StorageError, r"could not be read in 6 tries .*timed out"),
    "wrong": (ShardError, r"/add/\d+\.tar arrived damaged 6 times; the last time it has digest \w{32} but the manifest says \w{32}\. Copy"),
    "longer": (ShardError, r"arrived damaged 6 times; the last time it has more than the [\d,]+ bytes that the manifest says"),
    "other": (ShardError, r"arrived damaged 6 times; the last time it has 26 bytes but the manifest says [\d,]+\. Copy this file there again"),
    "404": (ShardError, r"/add/\d+\.tar is missing, but the manifest names it. Copy this file there again"),
    "403": (StorageError, r"cannot be read: HTTP Error 403: \w+. Is the address right, and may you read it"),
    "401": (StorageError, r"cannot be read: HTTP Error 401"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LASTING)
def test_faults_that_last_end_in_one_clear_error_and_leave_nothing_half_done(
    fault: str,
    between: tuple[Between, str],
    local: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", 0.2)
    # Only the reader's requests count.
    monkeypatch.setattr(cache_module.Cache, "prefetch", lambda self, place, wanted: None)
    server, place = between
    server.faults = lambda path, nth: fault if re.search(r"/add/\d+\.tar", path) else None
    remote = ShardSet.open(place, cache=tmp_path / "cache")
    kind, sentence = LASTING[fault]
    with pytest.raises(kind, match=sentence):
        stream(remote, tmp_path / "ledger")
    num_requests = [num for path, num in server.asked.items() if re.search(r"/train/add/\d+\.tar", path)]
    assert num_requests == [1 if fault in ("404", "403", "401") else storage.TRIES]
    assert nothing_is_left_over(tmp_path / "cache")
    server.faults = lambda path, nth: None
    assert stream(remote, tmp_path / "ledger") == local


@pytest.mark.parametrize("fault", ["wrong", "404"])
def test_verify_names_every_file_that_arrives_damaged(
    fault: str, through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TRIES", 2)
    server, place = through("http")
    shard_set = ShardSet.open(place, cache=tmp_path / "cache")
    list(shard_set.train["add"])  # intact files in the cache change nothing
    server.faults = lambda path, nth: (
        fault if path in ("/train/add/000001.tar", "/holdout/add/000000.index.npy") else None
    )
    faults = shard_set.verify()
    assert [re.search(r"(train|holdout)/\S+?\.(tar|index\.npy)", fault)[0] for fault in faults] == [  # type: ignore[index]
        "train/add/000001.tar",
        "holdout/add/000000.index.npy",
    ]
    outcome = skillshard("verify", place)
    assert outcome.code == 1 and outcome.err.count("error: ") == 2


def test_read_errors_of_a_store_that_last_are_told_with_its_words(
    through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, place = through("s3")
    remote = ShardSet.open(place, cache=tmp_path / "cache")
    server.faults = lambda path, nth: "403"
    with pytest.raises(StorageError, match=r"000\.tar\?endpoint_override=127.* cannot be read: .*ACCESS_DENIED"):
        remote.train["add"].open_shard(0)
    server.faults = lambda path, nth: "wrong"
    with pytest.raises(ShardError, match="arrived damaged 6 times; the last time it has digest"):
        remote.train["add"].open_shard(0)


# ------------------------------------------------------------------------------------------------ places and manifests


def test_places_without_a_shard_set_are_named(place: str, tmp_path: Path) -> None:
    nowhere = places.join(place, "nowhere")
    with pytest.raises(ShardError, match=r"nowhere.* holds no finished shards: manifest.json is not there"):
        ShardSet.open(nowhere)
    # A web server cannot be asked for other artefacts, so the address is read as an address of shards.
    sentence = "holds no finished shards" if place.startswith("http") else "holds no artefact of skillshard"
    assert sentence in fails("verify", nowhere)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        StorageError, match=r"http://127.0.0.1:1/S/manifest.json could not be read in 6 tries .*refused"
    ):
        ShardSet.open("http://127.0.0.1:1/S")
    with pytest.raises(
        StorageError, match=r"https://no.invalid/S/manifest.json cannot be read: .*Is the address right"
    ):
        ShardSet.open("https://no.invalid/S")


def test_a_remote_manifest_that_is_none_is_refused(between: tuple[Between, str]) -> None:
    server, place = between
    server.faults = lambda path, nth: "other"
    with pytest.raises(SkillshardError, match=r"manifest.json is not valid JSON"):
        ShardSet.open(place)


def test_a_manifest_cannot_name_a_file_outside_the_cache(place: str, tmp_path: Path) -> None:
    remote = ShardSet.open(place, cache=tmp_path / "cache")
    remote.train["add"].columns.digest[0] = "../../outside"
    with pytest.raises(ShardError, match=r"gives train/add/000000.tar the digest '../../outside', but a digest has 32"):
        remote.train["add"].open_shard(0)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("When reading: AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"), True),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: (HTTP status 503)"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 500) during GetObject operation"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429) during GetObject operation"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), False),
        (OSError("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation"), False),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation"), False),
        (FileNotFoundError("gone"), False),
        (ValueError("ours"), False),
    ],
)
def test_what_a_store_says_is_tried_again_only_where_it_may_pass(error: Exception, passes: bool) -> None:
    assert storage.may_pass(error) == passes


def test_the_pause_that_a_busy_server_asks_for_is_kept(
    between: tuple[Between, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    server, place = between
    server.faults = lambda path, nth: "busy" if nth == 0 else None
    assert storage.read_bytes(f"{place}/manifest.json").startswith(b"{")
    assert pauses == [7.0]


def test_secrets_in_a_uri_do_not_get_into_messages(between: tuple[Between, str]) -> None:
    server, place = between
    server.faults = lambda path, nth: "403"
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(f"{place}/train/add/000000.tar?sig=SECRET")
    assert "SECRET" not in str(caught.value) and server.asked == {"/train/add/000000.tar": 1}


@pytest.mark.parametrize("host", ["host:port", "a..b", "[::1", "no.invalid", "127.0.0.1:1"])
def test_an_address_that_cannot_be_asked_is_refused_without_its_secrets(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BACK_OFF_S", 0.0)
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(f"http://user:SECRET@{host}/S/manifest.json?sig=SECRET")
    assert "SECRET" not in str(caught.value)
