"""S3 as it really behaves: racing writers, lost replies, servers that ignore conditions, outages and missing
buckets."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import StorageError
from engine.storage import remote
from engine.storage.remote import RemoteStore
from engine.storage.store import open_store
from tests.support import ceph, s3
from tests.support.publishers import ROOT
from tests.support.s3 import Faults


def test_eight_racers_have_one_winner_each_round(s3_url: str) -> None:
    racers, rounds = 8, 20
    barrier = threading.Barrier(racers)

    def race(racer: int) -> list[int]:
        store, won = RemoteStore(s3_url), []
        for number in range(rounds):
            barrier.wait(timeout=60)
            if store.create(f"data/{number}", f"racer {racer}".encode()):
                won.append(number)
        return won

    with ThreadPoolExecutor(racers) as pool:
        wins = list(pool.map(race, range(racers)))
    assert Counter(number for won in wins for number in won) == dict.fromkeys(range(rounds), 1)
    store = open_store(s3_url)
    for racer, won in enumerate(wins):
        for number in won:
            assert store.read(f"data/{number}") == f"racer {racer}".encode()


def test_a_lost_reply_is_not_a_lost_race(s3_endpoint: str, s3_url: str) -> None:
    faults = Faults(part="/data/", lose_put_replies=1)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        store = RemoteStore(s3_url)
        assert store.create("data/a.tar", b"mine")
        assert faults.lose_put_replies == 0
        faults.lose_put_replies = 1
        assert not store.create("data/a.tar", b"yours")
        assert store.read("data/a.tar") == b"mine"


@pytest.mark.skipif(bool(ceph.SCRIPT), reason="Ceph checks signatures, so a proxy cannot drop a header")
def test_a_server_that_ignores_conditions_is_refused(s3_endpoint: str, s3_url: str) -> None:
    with s3.proxy(s3_endpoint, Faults(drop_condition=True)) as endpoint, s3.environment(endpoint):
        with pytest.raises(StorageError, match="ignores conditional writes"):
            open_store(s3_url, probe=True)
        assert list(open_store(s3_url).list()) == []
    open_store(s3_url, probe=True)


@pytest.mark.parametrize("status", [500, 503, 409, 429])
def test_passing_trouble_is_waited_out(s3_endpoint: str, s3_url: str, status: int) -> None:
    faults = Faults(part="/data/", refuse=7, status=status)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        store = RemoteStore(s3_url)
        assert store.create("data/a.tar", b"1")
        faults.refuse = 2
        assert store.read("data/a.tar") == b"1"
        assert faults.refuse == 0


def test_lasting_trouble_is_one_line(s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RETRY_SECONDS", 1)
    with (
        s3.proxy(s3_endpoint, Faults(part="/data/", refuse=10**6)) as endpoint,
        s3.environment(endpoint),
        pytest.raises(StorageError, match=r"/data/a\.tar: .*SlowDown.*; check the network") as caught,
    ):
        RemoteStore(s3_url).create("data/a.tar", b"1")
    assert "\n" not in str(caught.value)
    assert list(open_store(s3_url).list()) == []


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [
        (400, "ExpiredToken", "renew the credentials; then run the same command again"),
        (400, "AuthorizationHeaderMalformed", "set AWS_DEFAULT_REGION to the bucket's region"),
        (301, "PermanentRedirect", "set AWS_DEFAULT_REGION to the bucket's region"),
        (403, "AccessDenied", "the rights of this account"),
    ],
)
def test_a_refusal_says_its_own_fix_at_once(s3_endpoint: str, s3_url: str, status: int, code: str, fix: str) -> None:
    faults = Faults(part="/data/", refuse=10**6, status=status, code=code)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        store = RemoteStore(s3_url)
        began = time.monotonic()
        with pytest.raises(StorageError, match=f"{code}.*{re.escape(fix)}") as caught:
            store.create("data/a.tar", b"1")
        with pytest.raises(StorageError, match=r"the credentials|bucket's region") as again:
            store.exists("data/a.tar")  # a HEAD, whose reply has no body
        assert time.monotonic() - began < 10
        assert "\n" not in str(caught.value) + str(again.value)


def test_a_missing_bucket_is_named_at_once(s3_url: str) -> None:
    store = open_store("s3://no-such-bucket-here/out")
    for use in (
        lambda: open_store(store.url, probe=True),
        lambda: store.create("a", b""),
        lambda: store.read("a"),
    ):
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"no-such-bucket-here.*NoSuchBucket.*create the bucket"):
            use()
        assert time.monotonic() - began < 10


def test_a_dead_endpoint_is_told_within_seconds() -> None:
    pytest.importorskip("s3fs")
    began = time.monotonic()
    with s3.environment("http://127.0.0.1:9"), pytest.raises(StorageError, match="check the network"):
        open_store("s3://bucket/out", probe=True)
    assert time.monotonic() - began < 15


def test_an_outage_is_not_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr(remote, "_RETRY_SECONDS", 1)
    with s3.environment("http://127.0.0.1:9"):
        store = open_store("s3://bucket/out")
        for use in (lambda: store.exists("a"), lambda: list(store.list()), lambda: store.read("a")):
            with pytest.raises(StorageError):
                use()


def test_no_credentials_is_said_so(s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in s3.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="credentials"):
        open_store(s3_url, probe=True)


def test_objects_too_large_for_one_put_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    store = open_store("memory://large/out")
    assert store.create("a", bytes(999))
    with pytest.raises(StorageError, match=r"too large for one PUT; lower generate\.shard_size"):
        store.create("b", bytes(1000))


def test_large_objects_go_in_one_put(s3_endpoint: str, s3_url: str) -> None:
    faults = Faults()
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        assert RemoteStore(s3_url).create(
            "data/big.tar", bytes(110 * 2**20)
        )  # s3fs alone would send parts from 100 MiB
    assert [r.partition(" ")[0] for r in faults.requests if "big.tar" in r] == ["PUT"]


def test_a_process_that_fails_beside_an_open_store_ends(s3_url: str) -> None:
    code = (
        "import sys; from engine.storage.store import open_store; s = open_store(sys.argv[1]); s.create('a', b'1');"
        "s.open('a').read(1); raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, s3_url], cwd=ROOT, timeout=20).returncode == 7
