"""What reaches a terminal through the one door: texts as they are, or escaped; never as styles, pictures or
commands."""

from __future__ import annotations

import io
import logging
import warnings

import pytest
from rich.table import Table

from engine.cluster.progress import PlainReporter
from engine.cluster.terminal import Terminal, guard, note, say

HOSTILE = "cat[/x][bold]:smile:\x1b[2J\u202egnp s3://k:s3cr3t@b"
SHOWN = "cat[/x][bold]:smile:\\x1b[2J\\u202egnp s3://***@b"


def test_tables_show_what_is_in_their_cells() -> None:
    stream = io.StringIO()
    table = Table("class [x]", title=HOSTILE)
    table.add_row(HOSTILE)
    Terminal(file=stream, width=200).print(table)
    assert stream.getvalue().count(SHOWN) == 2
    assert "class [x]" in stream.getvalue()


def test_colours_of_our_own_still_reach_a_terminal() -> None:
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, color_system="standard").print("x", style="red")
    assert stream.getvalue() == "\x1b[31mx\x1b[0m\n"


def test_lines_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    stream = io.StringIO()
    note(HOSTILE, stream)
    reporter = PlainReporter(stream)
    reporter.note(HOSTILE)
    with reporter.task(HOSTILE, 1) as task:
        task.update(1, arm=HOSTILE)
    assert capsys.readouterr().out == SHOWN + "\n"
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [SHOWN, SHOWN]
    assert lines[2].count(SHOWN) == 2
    assert "\x1b" not in stream.getvalue()


def test_a_stream_that_is_closed_ends_no_work() -> None:
    stream = io.StringIO()
    stream.close()
    PlainReporter(stream).note("lost")


def test_warnings_and_logs_of_libraries() -> None:
    kept = warnings.formatwarning, logging.getLogRecordFactory()
    try:
        guard()
        assert SHOWN in warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1)
        stream = io.StringIO()
        logger = logging.getLogger("mimeo.test")
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.error("reading %s", HOSTILE)
        logger.removeHandler(handler)
        assert stream.getvalue() == f"reading {SHOWN}\n"
    finally:
        warnings.formatwarning = kept[0]
        logging.setLogRecordFactory(kept[1])
