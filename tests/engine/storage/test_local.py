"""Publishing on a local folder: raced, killed before every system call, killed at random, and on a full disk."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import StorageError
from engine.storage.local import LocalStore
from engine.storage.store import open_store, sweep
from tests.support import publishers
from tests.support.publishers import NAME

SIZE = 300_000
CALLS = "openat,mkdir,flock,write,writev,fsync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,close,access"


def test_empty_folders_go_with_their_last_file_and_are_no_obstacle_to_writers(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))

    def work(number: int) -> int:
        for turn in range(100):
            name = f"a/b{turn % 2}/{number}"
            assert store.create(name, b"x")
            store.remove(name)
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    assert list((tmp_path / "out").iterdir()) == []
    store.create("a/b/c", b"x")
    store.create("a/d", b"x")
    store.remove("a/b/c")
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["d"]


def temporaries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".tmp-")]


def test_eight_racers_have_one_winner_each_round(tmp_path: Path) -> None:
    racers, rounds, root = 8, 20, tmp_path / "out"
    commands = [publishers.command("race", root, racer, rounds, racers) for racer in range(racers)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True, cwd=publishers.ROOT) for c in commands]
    won = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * racers
    assert Counter(number for wins in won for number in wins) == {str(number): 1 for number in range(rounds)}
    for racer, wins in enumerate(won):
        for number in wins:
            assert (root / "data" / number).read_bytes() == f"{racer} ".encode() * 50_000
    assert not temporaries(root)


def traced(tmp_path: Path, root: Path, verb: str, *inject: str) -> tuple[int, list[str]]:
    """Run one publisher under strace; returns its exit status and its system calls, with paths behind descriptors."""
    log = tmp_path / "trace"
    options = ["strace", "-f", "-qq", "-y", "-e", f"trace={CALLS}", *inject, "-o", str(log)]
    done = subprocess.run([*options, *publishers.command("publish", root, SIZE, verb)], cwd=publishers.ROOT, timeout=60)
    lines = [re.sub(r"^\d+\s+", "", line) for line in log.read_text().splitlines()]
    return done.returncode, [line for line in lines if re.match(r"\w+\(", line)]


def steps(lines: list[str]) -> list[tuple[str, int]]:
    """The system calls between START and END, each as (name, how many of that name there were up to it)."""
    counts: Counter[str] = Counter()
    found, inside = [], False
    for line in lines:
        name = line.partition("(")[0]
        counts[name] += 1
        if "/START" in line or "/END" in line:
            inside = "/START" in line
        elif inside:
            found.append((name, counts[name]))
    return found


@pytest.fixture
def strace(tmp_path: Path) -> None:
    """Skips where strace is absent or may not trace."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-qq", "true"], capture_output=True).returncode:
        pytest.skip("strace is not installed or not permitted")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("verb", ["create", "create_in_pieces", "replace"])
def test_a_kill_before_any_system_call_leaves_the_file_whole_or_as_it_was(tmp_path: Path, verb: str) -> None:
    old = b"old" if verb == "replace" else None

    def fresh(name: str) -> Path:
        root = tmp_path / name
        if old is not None:
            LocalStore(str(root)).create(NAME, old)
        return root

    status, lines = traced(tmp_path, fresh("whole"), verb)
    assert status == 0
    sweep_points = steps(lines)
    assert {"openat", "writev" if verb == "create_in_pieces" else "write", "fsync", "flock"} <= {
        name for name, _ in sweep_points
    }
    before, after = 0, 0
    for name, count in sweep_points:
        root = fresh(f"{name}-{count}")
        status, _ = traced(tmp_path, root, verb, "-e", f"inject={name}:signal=KILL:when={count}")
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        store = open_store(root)
        content = store.read(NAME) if store.exists(NAME) else None
        assert content in (old, publishers.payload(SIZE)), (name, count)
        before, after = before + (content == old), after + (content != old)
        assert all(not entry.name.rpartition("/")[2].startswith(".") for entry in store.list())
        sweep(store)
        assert not temporaries(root)
        if verb != "replace":
            assert store.create(NAME, b"again") == (content is None)
        else:
            store.replace(NAME, b"again")
            assert store.read(NAME) == b"again"
    assert before >= 5
    assert after >= 2


@pytest.mark.usefixtures("strace")
def test_file_and_folder_are_synced_in_order(tmp_path: Path) -> None:
    _, lines = traced(tmp_path, tmp_path / "out", "create")
    calls = [
        f"{line.partition('(')[0]} {'temporary' if '.tmp-' in line else 'data' if '/data>' in line else 'other'}"
        for line in lines[: next(i for i, line in enumerate(lines) if "/END" in line)]
        if line.startswith(("write(", "fsync(", "link"))
    ]
    calls = [call.replace("linkat", "link") for call in calls]
    order = [calls.index(call) for call in ("write temporary", "fsync temporary", "link temporary", "fsync data")]
    assert order == sorted(order)
    assert calls.index("fsync other") < order[0]  # the new folder's own entry


def test_random_kills_leave_whole_files_and_what_was_reported(tmp_path: Path) -> None:
    chance, size, root = random.Random(0), 3_000_000, tmp_path / "out"
    left_over = 0
    for _ in range(25):
        process = subprocess.Popen(
            publishers.command("stream", root, size), stdout=subprocess.PIPE, text=True, cwd=publishers.ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.04))
        process.kill()
        reported = process.communicate()[0].split()
        for number in reported:
            assert (root / "data" / f"{process.pid}-{number}").exists()
        left_over += len(temporaries(root))
        for path in root.rglob("*"):
            if path.is_file() and path not in temporaries(root):
                assert path.read_bytes() == publishers.payload(size)
                path.unlink()
        sweep(open_store(root))
        assert not temporaries(root)
    assert left_over > 0  # the kills did hit publishers at work


def test_sweep_leaves_the_files_of_live_writers(tmp_path: Path) -> None:
    root = tmp_path / "out"
    process = subprocess.Popen(
        publishers.command("stream", root, 3_000_000), stdout=subprocess.DEVNULL, cwd=publishers.ROOT
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            if any(path.stat().st_size for path in temporaries(root)):
                break
            process.send_signal(signal.SIGCONT)
            time.sleep(0.003)
        (held,) = temporaries(root)
        assert sweep(open_store(root)) == 0
        assert held.exists()
    finally:
        process.kill()
        process.wait()
    assert sweep(open_store(root)) == 1
    assert not held.exists()


def test_sweep_judges_other_hosts_by_age_and_leaves_all_else(tmp_path: Path) -> None:
    foreign = tmp_path / "data" / ".tmp-a.tar-other.host-1-1"
    kept = [tmp_path / "data" / name for name in (".tmp-mine", "a.tar", ".hidden", ".tmp-a-b")]
    foreign.parent.mkdir()
    for path in (foreign, *kept):
        path.touch()
    assert sweep(open_store(tmp_path)) == 0
    old = time.time() - 48 * 3600
    for path in (foreign, *kept):
        os.utime(path, (old, old))
    assert sweep(open_store(tmp_path)) == 1
    assert not foreign.exists()
    assert all(path.exists() for path in kept)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB; skips where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_half_published(small_disk: Path) -> None:
    store = open_store(small_disk / "out")
    store.create("results/a.json", b"old")
    for publish in (store.create, store.replace):
        with pytest.raises(StorageError) as caught:
            publish("results/a.json" if publish == store.replace else "data/big.tar", bytes(4 << 20))
        line = str(caught.value)
        assert re.search(r"disk/out/.*: no space left \(1\.0 MiB free\); make room", line), line
        assert caught.value.exit_code == 4
    assert store.read("results/a.json") == b"old"
    assert [entry.name for entry in store.list()] == ["results/a.json"]
    assert not temporaries(small_disk)
    pieces = tuple(bytes([number]) * 100_000 for number in range(30))
    with pytest.raises(StorageError, match="no space left"):
        store.create("data/big.tar", pieces)
    assert not temporaries(small_disk)
    assert store.create("data/big.tar", pieces[:5])
    assert store.read("data/big.tar") == b"".join(pieces[:5])


def test_a_read_only_disk_is_refused_by_the_probe(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"disk/out.*read-only"):
        open_store(small_disk / "out", probe=True)


def test_places_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/out"):
        with pytest.raises(StorageError, match="a file lies where a folder is needed"):
            open_store(tmp_path / place, probe=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match=r"loop/out: .*(folder is needed|loop of symbolic links)"):
        open_store(tmp_path / "loop" / "out", probe=True)
    with pytest.raises(StorageError, match="too long"):
        open_store(tmp_path / ("x" * 300), probe=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_in_the_way_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "spec.yaml").mkdir()
    with pytest.raises(StorageError, match=r"spec\.yaml"):
        store.replace("spec.yaml", b"")
    with pytest.raises(StorageError, match="not a regular file"):
        store.read("spec.yaml")
    assert not store.create("spec.yaml", b"")


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").symlink_to(outside)
    store = open_store(tmp_path / "out")
    for use in (store.read, store.exists, store.remove, lambda name: store.create(name, b"x")):
        with pytest.raises(StorageError, match="symbolic link"):
            use("data/secret")
    assert (outside / "secret").read_text() == "s"
    assert os.listdir(outside) == ["secret"]  # noqa: PTH208
    assert [entry.name for entry in store.list()] == ["data"]
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    assert open_store(tmp_path / "linked").create("spec.yaml", b"1")  # the root itself may be a link


def test_publishing_replaces_links_not_their_targets(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("t")
    store = open_store(tmp_path / "out")
    store.create("a", b"1")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "target")
    assert not store.create("link", b"new")
    store.replace("link", b"new")
    assert (tmp_path / "target").read_text() == "t"
    assert store.read("link") == b"new"


def test_pipes_are_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = open_store(tmp_path)
    with pytest.raises(StorageError, match="not a regular file"):
        store.read("pipe")
    assert not store.exists("pipe")


def test_names_below_a_file_are_absent(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create("data/a.tar", b"1")
    assert not store.exists("data/a.tar/below")
    with pytest.raises(FileNotFoundError):
        store.read("data/a.tar/below")
    store.remove("data/a.tar/below")
    with pytest.raises(StorageError, match="a file lies where a folder is needed"):
        store.create("data/a.tar/below", b"")


def test_published_files_have_ordinary_rights(tmp_path: Path) -> None:
    store, source = open_store(tmp_path / "out"), tmp_path / "private"
    source.write_bytes(b"1")
    source.chmod(0o600)
    (tmp_path / "ordinary").touch()
    store.create("a", source)
    store.create("b", b"1")
    expected = (tmp_path / "ordinary").stat().st_mode
    assert [(tmp_path / "out" / name).stat().st_mode for name in "ab"] == [expected] * 2
