"""The `mimeo` command: one verb a module, errors in one line, exit codes that scripts can rely on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from engine import __version__
from engine.cluster.faults import as_expected
from engine.cluster.terminal import Unread, guard, is_unread, note, say, settle
from engine.errors import MimeoError, StorageError
from engine.storage import log
from engine.text import one_line, shortened
from pipelines import (
    cluster,
    condition,
    doctor,
    equivalence,
    evaluate,
    generate,
    judge,
    match,
    plan,
    pretrain,
    quickstart,
    report,
    run,
    search,
    status,
    study,
    submit,
    train,
    verify,
)

UNEXPECTED, UNREAD = 70, 141

VERBS = (
    quickstart,
    run,
    plan,
    pretrain,
    condition,
    match,
    generate,
    judge,
    train,
    evaluate,
    search,
    equivalence,
    report,
    verify,
    status,
    submit,
    doctor,
    cluster,
)

app = typer.Typer(
    name="mimeo",
    help="Turns a real labelled image set into synthetic training data, and proves how good it is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _module in VERBS:
    app.command(_module.__name__.rpartition(".")[2])(_module.main)
app.add_typer(study.app)


def _version(value: bool) -> None:
    if value:
        say(f"mimeo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Turns a real labelled image set into synthetic training data, and proves how good it is."""
    try:
        Path.cwd()
    except OSError:
        raise StorageError("the working folder", "is gone", "change to a folder that exists") from None


UsageFault: Any = typer.BadParameter.__mro__[1]  # click's UsageError, of whichever click typer brings


class Terminated(BaseException):
    """SIGTERM, raised where the main thread is, so that locks, bars and Ray are closed on the way out."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _fail(text: str, code: int) -> int:
    note(f"error: {one_line(text)}", sys.stderr)
    return code


def _refused(error: MimeoError) -> int:
    if os.environ.get("MIMEO_DEBUG"):
        note("".join(traceback.format_exception(error)), sys.stderr)
    return _fail(str(error), error.exit_code)


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done; 2 recipe or usage; 3 data or verification; 4 storage; 5 output in use; 6 cluster resources; 70 a fault that
    nobody expected, whose traceback is in a log file; 130 and 143 signals; 141 nobody reads what it says.
    `MIMEO_DEBUG=1` shows the tracebacks of expected failures too.
    """
    guard()
    try:
        signal.signal(signal.SIGTERM, _terminate)
        result = app(list(arguments) if arguments is not None else None, standalone_mode=False, prog_name="mimeo")
        say("", end="")  # what is still buffered fails here, where it can be told
        return result if isinstance(result, int) else 0
    except MimeoError as error:
        return _refused(error)
    except UsageFault as error:
        return _fail(shortened(one_line(error.format_message())) + "; see mimeo --help", 2)
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes any end of a file for the end of standard input
            return _unexpected(error.__cause__)
        return _fail(*STOPPED)
    except Terminated:
        return _fail(*TERMINATED)
    except Unread:
        return UNREAD
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        if is_unread():
            settle()
            return UNREAD
        return _unexpected(error.__context__)  # typer ends the process for any broken pipe
    except Exception as error:
        return _unexpected(error)


STOPPED = "stopped; the same command goes on from here", 130
TERMINATED = "terminated; the same command goes on from here", 143


def _unexpected(error: Exception) -> int:
    """One line for what no verb expects: a system call, Ray or memory that failed, else a fault with its log file.

    What fails while a signal ends the work, such as a lock that was being waited for, is that signal.
    """
    before = error.__context__
    while before is not None:
        if isinstance(before, KeyboardInterrupt | Terminated):
            return _fail(*(TERMINATED if isinstance(before, Terminated) else STOPPED))
        before = before.__context__
    known = as_expected(error, "a file" if settle() else "standard output")
    if known is not None:
        return _refused(known)
    return _fail(f"mimeo: {_logged(error)}", UNEXPECTED)


def _logged(error: BaseException) -> str:
    """What a fault is, in a line that says where its traceback lies."""
    path = log.write("".join(traceback.format_exception(error)))
    where = f"its log is {path}" if path else "no folder takes its log: set MIMEO_CACHE to one that can be written"
    return f"an unexpected {type(error).__name__} ({shortened(str(error), 200)}); {where}"


def _in_thread(fault: threading.ExceptHookArgs) -> None:
    """A thread has ended by an exception: the work goes on, or fails where the thread is missed."""
    if fault.exc_value is not None:
        note(f"warning: a thread: {_logged(fault.exc_value)}", sys.stderr)


def _in_destructor(fault: Any) -> None:
    """An exception that nobody can catch, as in a destructor at the end of the process."""
    if fault.exc_value is not None:
        log.write("".join(traceback.format_exception(fault.exc_value)))


def main() -> None:
    """The console script."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # names of files are UTF-8, whatever the terminal is: Python must begin anew
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    threading.excepthook, sys.unraisablehook = _in_thread, _in_destructor
    sys.exit(execute())


if __name__ == "__main__":
    main()
