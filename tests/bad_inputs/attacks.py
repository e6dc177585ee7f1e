"""A command line that must fail, and a process that tries it: one line, the right exit code, soon, nothing changed.

The tables beside this file hold the rows by kind. A new kind is a list of `Attack`s and one parametrised test that
calls
`check_attack(attack, folder)` for each.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import stat
import sys
import traceback
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

SECONDS = 10.0  # of a processor, for the whole command
PATIENCE_S = 120.0  # of the clock: the machine may be crowded
MEGABYTES = 1500
PRELOADED = (  # also what another user of the machine may not be able to read
    "pytest",
    "encodings.utf_8_sig",
    "encodings.idna",
    "pipelines.cli",
    "engine.images.catalog",
    "engine.shards.verification",
    "engine.report.html",
)


@dataclass(frozen=True)
class Attack:
    """One row: an input, what is run on it, and the outcomes that are right."""

    name: str
    arguments: tuple[str, ...]  # of `mimeo`, in the row's folder; {here} stands for that folder
    codes: tuple[int, ...]  # exit codes that are right; 0 where the input is no fault
    says: tuple[str, ...] = ()  # parts of the line
    make: Callable[[Path], object] | None = None  # lays the row's files into its folder
    before: Callable[[], object] | None = None  # called in the command's process: limits, streams, another user
    environment: Mapping[str, str | None] = field(default_factory=dict)  # None takes a variable away
    changes: bool = False  # the command may write into its folder
    progress: bool = False  # lines about its work may come before the error


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, what it wrote, processor seconds, peak memory in MB."""

    code: int | None
    out: str
    err: str
    seconds: float
    megabytes: float


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder below a folder: kind and rights, and the SHA-256 or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = ""
        if stat.S_ISLNK(mode):
            content = str(path.readlink())
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{stat.filemode(mode)} {content}"
    return found


def run(attack: Attack, folder: Path, records: Path) -> Outcome:
    """Run the command in `folder`, in a fresh process that has its modules already; what it writes goes to
    `records`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    arguments = [argument.replace("{here}", str(folder)) for argument in attack.arguments]
    environment = {**attack.environment}
    process = context.Process(target=_command, args=(arguments, folder, records, environment, attack.before))
    process.start()
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Outcome(None, _text(records / "out"), _text(records / "err"), PATIENCE_S, 0.0)
    used = json.loads(_text(records / "used") or "[0, 0]")
    return Outcome(process.exitcode, _text(records / "out"), _text(records / "err"), *used)


def check_attack(attack: Attack, folder: Path) -> Outcome:
    """Lay out a row in an empty folder, try it, and assert what every row has in common."""
    here, records = folder / "here", folder / "records"
    for each in (here, records):
        each.mkdir()
    if attack.make is not None:
        attack.make(here)
    before = tree(here)
    outcome = run(attack, here, records)
    check_outcome(attack, outcome)
    if not attack.changes:
        assert tree(here) == before, "the command changed files"
    return outcome


def check_outcome(attack: Attack, outcome: Outcome) -> None:
    """The exit code, one line, no traceback, no control characters, in time."""
    said = outcome.err.strip().splitlines()
    assert outcome.code is not None, f"ran on for {PATIENCE_S:.0f} s"
    assert "Traceback" not in outcome.err + outcome.out, outcome.err
    assert outcome.code in attack.codes, (outcome.code, outcome.err[-2000:])
    assert control_characters(outcome.err + outcome.out) == ""
    assert outcome.seconds < SECONDS
    assert outcome.megabytes < MEGABYTES
    if outcome.code == 0:
        return
    assert len(said) == 1 or attack.progress, said
    assert [line for line in said if line.startswith("error: ")] == said[-1:], said
    assert len(said[-1]) < 2000
    for part in attack.says:
        assert part in said[-1], said[-1]


def control_characters(text: str) -> str:
    """What a terminal might obey: C0, C1, and the characters that turn the direction of text."""
    turning = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return "".join(c for c in text if (unicodedata.category(c) == "Cc" and c != "\n") or c in turning)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _command(
    arguments: list[str],
    folder: Path,
    records: Path,
    environment: Mapping[str, str | None],
    before: Callable[[], object] | None,
) -> None:
    """The process of one command: as from a shell, but that Python and its modules are loaded."""
    for module in PRELOADED:  # an earlier test's server may not have them
        importlib.import_module(module)
    from pipelines.cli import execute

    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(records / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    used = os.open(records / "used", os.O_CREAT | os.O_WRONLY)
    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value.replace("{here}", str(folder))
    if before is not None:
        before()
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    begun = _seconds()
    try:
        code = execute(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        (records / "err").write_text(traceback.format_exc())
        code = 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    os.write(used, json.dumps([_seconds() - begun, peak]).encode())
    os._exit(code)


def _stream(descriptor: int) -> TextIO | None:
    """A standard stream as the interpreter makes it at its start: None where it is closed."""
    try:
        buffering = 1 if descriptor == 2 else -1
        return open(descriptor, "w", buffering, encoding="utf-8", closefd=False)
    except OSError:
        return None


def _seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total
