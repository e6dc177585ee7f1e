"""Progress that a person can follow: rich bars with rate and ETA on a terminal, one plain line now and then
elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.cluster.terminal import Terminal, note
from engine.text import shown

PLAIN_INTERVAL_S = 10.0


def _fields_text(fields: dict[str, float | int | str]) -> str:
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in fields.items()]
    return shown("  ".join(parts))


class Task:
    """One piece of counted work; `update` takes the absolute count that is done."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.base = 0
        self.started = time.monotonic()
        self._first, self._moving = True, False

    def update(self, done: int, **fields: float | int | str) -> None:
        """Record that `done` of `total` units are finished; `fields` are shown beside (loss, quarantined, ...).

        The rate counts from the first progress after the first update: neither work found done on resume nor the
        loading of models belongs to it.
        """
        if self._first or (not self._moving and self.base < done < self.total):
            self._moving = not self._first
            self.base, self.started, self._first = done, time.monotonic(), False
        self.done = done
        self._show(fields)

    @property
    def rate(self) -> float:
        """Units a second since work began to move."""
        seconds = time.monotonic() - self.started
        return (self.done - self.base) / seconds if seconds > 0 else 0.0

    def close(self) -> None:
        """End the task; safe to call twice."""

    def _show(self, fields: dict[str, float | int | str]) -> None:
        raise NotImplementedError

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _PlainTask(Task):
    def __init__(self, name: str, total: int, unit: str, stream: TextIO) -> None:
        super().__init__(name, total, unit)
        self._stream, self._last, self._said = stream, 0.0, False
        self._latest: dict[str, float | int | str] = {}

    def _show(self, fields: dict[str, float | int | str]) -> None:
        self._latest, self._said = fields, False
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL_S:
            self._line()
            self._last = now

    def _line(self) -> None:
        rate = self.rate
        eta = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        speed = f", {rate:.3g} {self.unit}/s" if rate > 0 else ""
        extra = f"  {_fields_text(self._latest)}" if self._latest else ""
        note(f"{self.name}: {self.done:,}/{self.total:,} {self.unit}{speed}{eta}{extra}", self._stream)
        self._said = True

    def close(self) -> None:
        if not self._said:
            self._line()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class _RichTask(Task):
    def __init__(self, name: str, total: int, unit: str, bars: Progress) -> None:
        super().__init__(name, total, unit)
        self._bars = bars
        self._id: TaskID = bars.add_task(shown(name), total=total, unit=unit, rate="", fields="")

    def _show(self, fields: dict[str, float | int | str]) -> None:
        rate = f"{self.rate:.3g} {self.unit}/s" if self.rate > 0 else ""
        self._bars.update(self._id, total=self.total, completed=self.done, rate=rate, fields=_fields_text(fields))

    def close(self) -> None:
        self._bars.stop_task(self._id)


class Reporter:
    """Where a run tells the user what happens."""

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        """Open a counted task of `total` units."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Say one line."""
        raise NotImplementedError


class PlainReporter(Reporter):
    """Plain lines, at most one a task in ten seconds: for files, pipes and job logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        return _PlainTask(name, total, unit, self._stream)

    def note(self, text: str) -> None:
        note(text, self._stream)


class RichReporter(Reporter):
    """Bars with count, rate and time left."""

    def __init__(self, console: Terminal) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[fields]}", style="dim", markup=False),
            console=console,
        )

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        return _RichTask(name, total, unit, self._bars)

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw the bars while the block runs."""
        with self._bars:
            yield


@contextmanager
def reporter() -> Iterator[Reporter]:
    """The reporter for standard error: bars on a terminal, plain lines otherwise."""
    console = Terminal(stderr=True)
    if console.is_terminal:
        rich_reporter = RichReporter(console)
        with rich_reporter.live():
            yield rich_reporter
    else:
        yield PlainReporter()
