"""What surrounds a command: options, the environment, streams, limits, another user, and outputs that are none."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.attacks import Attack, check_attack, check_outcome, run, tree

ROOT = Path(__file__).resolve().parents[2]
LONG, LONGER = "o" * 300, "o" * 5000
NOBODY = 65534
FULL = "/dev/full"


def begun(here: Path) -> Path:
    """An output that a run was begun in: its recipe alone, as `quickstart` leaves it."""
    from engine.storage.claim import claim
    from engine.storage.store import open_store
    from pipelines.context import load_recipe

    claim(open_store(here / "out"), load_recipe("quickstart", None))
    return here / "out"


def redirected(descriptor: int, path: str = FULL) -> None:
    """Before the command: a stream leads to another file."""
    os.dup2(os.open(path, os.O_WRONLY), descriptor)


def unread(descriptor: int) -> None:
    """Before the command: a stream is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, descriptor)


def shut(*descriptors: int) -> None:
    """Before the command: streams that the caller has closed."""
    for descriptor in descriptors:
        os.close(descriptor)


def gone() -> None:
    """Before the command: the working folder is removed."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    Path(folder).rmdir()


def as_nobody() -> None:
    """Before the command: it is another user's."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def limited(kind: int, size: int) -> None:
    """Before the command: a limit of the shell."""
    resource.setrlimit(kind, (size, size))


OPTIONS = [
    *(
        Attack(f"time limit {v}", ("run", "quickstart", "--time-limit", v), (2,), ("--time-limit",))
        for v in ("nan", "-5", "inf", "-inf", "x", "")
    ),
    *(
        Attack(f"price {v}", ("status", "out", "--price-per-hour", v), (2,), ("--price-per-hour",))
        for v in ("inf", "nan", "-1", "1e400", "x")
    ),
    *(
        Attack(
            f"driver cpus {v}",
            ("submit", "quickstart", "--cluster", "http://127.0.0.1:1", "--output", "s3://b/x", "--driver-cpus", v),
            (2,),
        )
        for v in ("inf", "nan", "-1")
    ),
    Attack("unknown option", ("run", "quickstart", "--\x1b[2J"), (2,), ("\\x1b[2J",)),
    Attack("unknown verb", ("\x1b]0;title\x07",), (2,), ("\\x1b]0;title\\x07",)),
    Attack("verb of 5000 characters", (LONGER,), (2,)),
    Attack("option without value", ("plan", "quickstart", "--set"), (2,)),
    Attack("bytes that are no text", ("plan", "\udcff\udc80"), (2,), ("\\udcff",)),
    Attack(
        "signature of a submit output",
        ("submit", "quickstart", "--cluster", "http://127.0.0.1:1", "--output", "az://c/x?sig=s3cr3t"),
        (2,),
        ("***",),
    ),
]
URLS = (
    "",
    "~nobody-here/x",
    LONG,
    LONGER,
    "s3:/b/x",
    "s3://",
    "ftp://h/x",
    "https://u:s3cr3t@h/x",
    "s3://k:s3cr3t@b/x",
    "az://c/x?sig=s3cr3t",
    "a::b",
    "file://h/x",
    "x\x1b[2Jy\n",
)


def is_fifo(here: Path) -> None:
    begun(here)
    os.mkfifo(here / "out/.mimeo.lock")


def is_hard_link(here: Path) -> None:
    begun(here)
    (here / "precious").write_text("a thesis")
    os.link(here / "precious", here / "out/.mimeo.lock")


def is_link(here: Path, target: str = "precious") -> None:
    begun(here)
    (here / "precious").write_text("a thesis")
    (here / "out/.mimeo.lock").symlink_to(here / target)


def is_folder(here: Path) -> None:
    begun(here)
    (here / "out/.mimeo.lock").mkdir()


def foreign(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out/thesis.txt").write_text("precious")


def spec_of(data: bytes | None) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        (here / "out").mkdir()
        if data is None:
            os.mkfifo(here / "out/spec.yaml")
        else:
            (here / "out/spec.yaml").write_bytes(data)

    return make


def outputs() -> Iterator[Attack]:
    for verb in ("status", "report", "verify"):
        for url in URLS:
            yield Attack(
                f"{verb} of {url[:24]!r}",
                (verb, url),
                (2, 3, 4),
                ("***",) if "s3cr3t" in url and "@" not in url else (),
            )
        yield Attack(f"{verb} of a name that is a typo", (verb, "TYPO"), (3,))
        yield Attack(f"{verb} of an empty folder", (verb, "out"), (3,), make=lambda here: (here / "out").mkdir())
        yield Attack(f"{verb} of a foreign folder", (verb, "out"), (3,), make=foreign)
        yield Attack(f"{verb} of /", (verb, "/"), (3,))
        yield Attack(f"{verb} of a file", (verb, "f"), (3, 4), make=lambda here: (here / "f").write_text(""))
        yield Attack(f"{verb} of a loop of links", (verb, "a"), (3, 4), make=lambda here: (here / "a").symlink_to("a"))
    for name, data in {
        "cut": b"name: x\nsou",
        "list": b"[]",
        "deep": b"[" * 200_000,
        "binary": bytes(range(256)),
        "a pipe": None,
        "long": b"a: [" + b"1," * 600_000,
        "unknown user": b"name: x\nsource: {kind: folder, path: ~nobody-here/x}\n",
    }.items():
        yield Attack(
            f"status of a recipe that is {name}",
            ("status", "out"),
            (3, 4, 0) if name == "unknown user" else (3, 4),
            make=spec_of(data),
        )
    for name, make in {
        "fifo": is_fifo,
        "hard link": is_hard_link,
        "link": is_link,
        "dangling link": functools.partial(is_link, target="x"),
        "folder": is_folder,
    }.items():
        yield Attack(f".mimeo.lock is a {name}", ("run", "quickstart", "--output", "out"), (4,), make=make)
    for url in URLS:
        if url:
            yield Attack(f"output {url[:24]!r}", ("generate", "quickstart", "--output", url), (2, 4))


STREAMS = [
    Attack(
        "stdout is /dev/full: plan",
        ("plan", "quickstart"),
        (4,),
        ("standard output",),
        before=functools.partial(redirected, 1),
    ),
    Attack(
        "stdout is /dev/full: help", ("--help",), (4,), ("standard output",), before=functools.partial(redirected, 1)
    ),
    Attack(
        "stdout is /dev/full: version",
        ("--version",),
        (4,),
        ("standard output",),
        before=functools.partial(redirected, 1),
    ),
    Attack(
        "stdout is /dev/full: status",
        ("status", "out"),
        (4,),
        ("standard output",),
        make=begun,
        before=functools.partial(redirected, 1),
    ),
    Attack(
        "stdout is a folder that takes nothing",
        ("plan", "quickstart"),
        (4,),
        before=functools.partial(redirected, 1, "/proc/self/oom_score_adj"),
    ),
    *(
        Attack(
            f"stdout is a closed pipe: {arguments[0]}",
            arguments,
            (141,),
            make=begun,
            before=functools.partial(unread, 1),
        )
        for arguments in (("plan", "quickstart"), ("status", "out"), ("--help",), ("doctor",))
    ),
    Attack("stdout is closed: plan", ("plan", "quickstart"), (0,), before=functools.partial(shut, 1)),
    Attack("all streams are closed: plan", ("plan", "quickstart"), (0,), before=functools.partial(shut, 0, 1, 2)),
    Attack("all streams are closed: status", ("status", "TYPO"), (3,), before=functools.partial(shut, 0, 1, 2)),
    Attack("stderr is /dev/full: a wrong recipe", ("plan", "nowhere"), (2,), before=functools.partial(redirected, 2)),
    Attack("stderr is a closed pipe: a wrong recipe", ("plan", "nowhere"), (2,), before=functools.partial(unread, 2)),
    *(
        Attack(f"working folder was removed: {verb}", (verb, "quickstart"), (4,), ("working folder",), before=gone)
        for verb in ("plan", "generate", "run")
    ),
]
SILENT = {a.name for a in STREAMS if "stderr" in a.name or "all streams" in a.name or "closed pipe" in a.name}
LIMITS = [
    Attack(
        "ulimit -f 1 kB",
        ("generate", "quickstart"),
        (4,),
        ("ulimit -f",),
        before=functools.partial(limited, resource.RLIMIT_FSIZE, 1000),
        changes=True,
    ),
    Attack(
        "ulimit -n 4", ("plan", "quickstart"), (0, 4, 70), before=functools.partial(limited, resource.RLIMIT_NOFILE, 4)
    ),
]
ENVIRONMENT = [
    Attack("no HOME", ("plan", "quickstart"), (0,), environment={"HOME": None, "MIMEO_CACHE": None}),
    Attack("HOME nowhere", ("plan", "quickstart"), (0,), environment={"HOME": "/nowhere", "MIMEO_CACHE": None}),
    Attack("MIMEO_CACHE unknown user", ("plan", "quickstart"), (0,), environment={"MIMEO_CACHE": "~nobody-here/x"}),
    Attack("MIMEO_CACHE a file", ("plan", "quickstart"), (0,), environment={"MIMEO_CACHE": "/dev/null"}),
    Attack("TMPDIR nowhere", ("plan", "quickstart"), (0,), environment={"TMPDIR": "/nowhere"}),
    Attack("COLUMNS is no number", ("plan", "quickstart"), (0,), environment={"COLUMNS": "x"}),
    Attack(
        "LANG=C", ("plan", "quickstart"), (0,), environment={"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ),
    Attack("TERM of escape codes", ("plan", "quickstart"), (0,), environment={"TERM": "\x1b[2J"}),
    Attack(
        "cluster of a secret",
        ("submit", "quickstart", "--output", "s3://b/x"),
        (2, 6),
        environment={"RAY_API_SERVER_ADDRESS": "ftp://u:s3cr3t@h:1"},
    ),
]


def closed_folder(here: Path) -> Path:
    """A folder that only its owner enters, with something of each kind in it."""
    folder = here / "closed"
    folder.mkdir()
    for name in ("r.yaml", "set.tar", "set.parquet", "set.npz", "usps.mat", "model.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "photos/cat").mkdir(parents=True)
    folder.chmod(0o700)
    (here / "set.tar").write_bytes(b"")
    (here / "set.tar").chmod(0)
    return folder


OF_NOBODY = {
    "recipe below a folder of mode 700": ("plan", "closed/r.yaml"),
    "webdataset below a folder of mode 700": (
        "plan",
        "quickstart",
        "--set",
        "source={kind: webdataset, path: closed/set.tar}",
    ),
    "parquet below a folder of mode 700": (
        "plan",
        "quickstart",
        "--set",
        "source={kind: parquet, path: closed/set.parquet}",
    ),
    "usps below a folder of mode 700": ("plan", "quickstart", "--set", "source={kind: usps, path: closed/usps.mat}"),
    "medmnist below a folder of mode 700": (
        "plan",
        "quickstart",
        "--set",
        "source={kind: medmnist, path: closed/set.npz}",
    ),
    "photos below a folder of mode 700": ("plan", "quickstart", "--set", "source={kind: folder, path: closed/photos}"),
    "the folder of mode 700 itself": ("plan", "quickstart", "--set", "source={kind: folder, path: closed}"),
    "a pattern below a folder of mode 700": (
        "plan",
        "quickstart",
        "--set",
        "source={kind: webdataset, path: '{here}/closed/*.tar'}",
    ),
    "tar of mode 000": ("plan", "quickstart", "--set", "source={kind: webdataset, path: set.tar}"),
    "checkpoint below a folder of mode 700": ("generate", "quickstart", "--set", "model.checkpoint=closed/photos"),
    "lora below a folder of mode 700": ("generate", "quickstart", "--set", "model.lora=closed/model.safetensors"),
    "output below a folder of mode 700": ("generate", "quickstart", "--output", "closed/out"),
    "output in a folder of another user": ("generate", "quickstart", "--output", "out"),
    "status below a folder of mode 700": ("status", "closed"),
    "report below a folder of mode 700": ("report", "closed"),
    "verify below a folder of mode 700": ("verify", "closed"),
}


@pytest.mark.parametrize("attack", [*OPTIONS, *outputs(), *ENVIRONMENT], ids=lambda attack: attack.name)
def test_a_command_that_cannot_be_is_one_line(attack: Attack, tmp_path: Path) -> None:
    outcome = check_attack(attack, tmp_path)
    assert "s3cr3t" not in outcome.out + outcome.err


@pytest.mark.parametrize("attack", [*STREAMS, *LIMITS], ids=lambda attack: attack.name)
def test_streams_and_limits(attack: Attack, tmp_path: Path) -> None:
    if attack.name not in SILENT:
        check_attack(attack, tmp_path)
        return
    here, records = tmp_path / "here", tmp_path / "records"
    here.mkdir()
    records.mkdir()
    if attack.make is not None:
        attack.make(here)
    before, outcome = tree(here), run(attack, here, records)
    assert outcome.code in attack.codes
    assert outcome.err == ""
    assert tree(here) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", OF_NOBODY)
def test_another_user_without_rights_is_told_so(name: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mimeo-nobody-"))
    try:
        for each in (folder, folder / "here", folder / "records"):
            each.mkdir(exist_ok=True)
            each.chmod(0o755)
        closed_folder(folder / "here")
        attack = Attack(name, OF_NOBODY[name], (2, 3, 4), before=as_nobody, environment={"HOME": "/nonexistent"})
        before = tree(folder / "here")
        outcome = run(attack, folder / "here", folder / "records")
        check_outcome(attack, outcome)
        assert "ermission" in outcome.err
        assert tree(folder / "here") == before
    finally:
        shutil.rmtree(folder)


def test_an_unexpected_fault_is_one_line_with_a_private_log(tmp_path: Path) -> None:
    """A stored record that breaks a promise of the program itself stands for every fault that nobody thought of."""
    code = (
        "import sys\n"
        "from pipelines import cli, status\n"
        "def broken(url): raise KeyError('s3://k:s3cr3t@b/\\x1b[2J')\n"
        "cli.app.command('broken')(broken)\n"
        "sys.exit(cli.execute(['broken', 'x']))\n"
    )
    environment = {**os.environ, "MIMEO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    assert result.returncode == 70
    (line,) = result.stderr.splitlines()
    (log,) = (tmp_path / "cache/logs").iterdir()
    assert str(log) in line
    assert "KeyError" in line
    assert "Traceback" not in line
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    text = log.read_text()
    assert "Traceback" in text
    assert "in broken" in text
    for shown in (line, text):
        assert "s3cr3t" not in shown
        assert "\x1b" not in shown


def test_a_fault_in_a_thread_or_a_destructor_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, threading\n"
        "from pipelines import cli\n"
        "class Held:\n"
        "    def __del__(self): raise KeyError('destroyed')\n"
        "def broken(url: str):\n"
        "    Held()\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "cli.app.command('broken')(broken)\n"
        "sys.argv = ['mimeo', 'broken', 'x']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "MIMEO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: a thread: an unexpected ZeroDivisionError")
    logs = [path.read_text() for path in (tmp_path / "cache/logs").iterdir()]
    assert sorted(("ZeroDivisionError" in text, "destroyed" in text) for text in logs) == [(False, True), (True, False)]
    assert result.returncode == 0
