"""The `mimeo` command: one verb a module, errors in one line, exit codes that scripts can rely on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import typer

from engine import __version__
from engine.errors import MimeoError
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
        typer.echo(f"mimeo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Turns a real labelled image set into synthetic training data, and proves how good it is."""


UsageFault = typer.BadParameter.__mro__[1]  # click's UsageError, of whichever click typer brings


class Terminated(BaseException):
    """SIGTERM, raised where the main thread is, so that locks, bars and Ray are closed on the way out."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done; 2 recipe or usage; 3 data or verification; 4 storage; 5 output in use; 6 cluster resources; 130 and 143 signals.
    `MIMEO_DEBUG=1` shows tracebacks instead of lines.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = app(list(arguments) if arguments is not None else None, standalone_mode=False, prog_name="mimeo")
        return result if isinstance(result, int) else 0
    except MimeoError as error:
        if os.environ.get("MIMEO_DEBUG"):
            raise
        return _fail(str(error), error.exit_code)
    except UsageFault as error:
        return _fail(" ".join(error.format_message().split()) + "; see mimeo --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped; the same command goes on from here", 130)
    except Terminated:
        return _fail("terminated; the same command goes on from here", 143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main() -> None:
    """The console script."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = (
            "1"  # names of files are UTF-8 whatever the terminal is: begin anew, so that Python knows
        )
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(execute())


if __name__ == "__main__":
    main()
