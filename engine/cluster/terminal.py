"""The one place that writes to the terminal: nothing reaches it that holds a secret or that a terminal obeys."""

from __future__ import annotations

import logging
import os
import select
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from engine.storage.abstract_store import storage_error
from engine.text import printable, shown


class Unread(Exception):
    """Nobody reads standard output any more, as behind `| head`."""


class Terminal(Console):
    """A rich console for standard output, or with `stderr=True` standard error, that shows texts as `text.shown` has
    them.

    Brackets and colons in a text are never styles or pictures.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console.print`.

        StorageError where standard output takes nothing more, Unread where nobody reads it. What goes to standard
        error is progress: it is lost then, and the work goes on.
        """
        with suppress(OSError) if self.stderr else _written():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> NoReturn:
        """Where rich would end the process."""
        raise BrokenPipeError


def say(text: str, *, end: str = "\n") -> None:
    """Write a text as `text.shown` has it to standard output; errors as those of `Terminal.print`."""
    with _written():
        print(shown(text), end=end, flush=True)


def note(text: str, stream: TextIO) -> None:
    """Write a line of progress as `text.shown` has it; where the stream takes nothing more the line is lost, and the
    work goes on."""
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(shown(text), file=stream, flush=True)


def is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def guard() -> None:
    """Make the standard streams safe for this process: open, able to say any letter, and warnings and log records as
    `text.shown` has them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by the caller: a file of ours must not become standard output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")
    if warnings.formatwarning is not _warning:
        warnings.formatwarning = _warning
    if logging.getLogRecordFactory() is not _record:
        logging.setLogRecordFactory(_record)


_plain_warning, _plain_record = warnings.formatwarning, logging.getLogRecordFactory()


def _warning(*details: Any, **named: Any) -> str:
    return shown(_plain_warning(*details, **named))


def _record(*details: Any, **named: Any) -> logging.LogRecord:
    record = _plain_record(*details, **named)
    with suppress(TypeError, ValueError, KeyError):  # arguments that do not fit the message: logging itself says so
        record.msg, record.args = shown(record.getMessage()), ()
    return record


def settle() -> bool:
    """Write what standard output still holds, or drop it where it takes nothing more; returns whether it was taken.

    To be called at the end of a command: the interpreter would fail over it with a traceback of its own.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _forget_output()
        return False
    return True


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _forget_output()
        if isinstance(error, BrokenPipeError):
            raise Unread from None
        raise storage_error(error, "standard output") from None
