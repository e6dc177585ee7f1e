"""Benchmarks run, judge and are listed: a smoke run of each, verdicts by hand, and the README's table from the
results."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pairs, table
from tests.support.tiers import slow

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("shard_writing", "planning", "verify_rate")
QUICK_SLOWLY = ("null_generator", "resume", "first_sample", "fast_settings")
OWN_ROWS = ("generation_overhead", "match_step", "mixing_loader")
HELPERS = {"machine", "pairs", "table", "null"} | {
    "driver_simulation",
    "gpumodels",
    "gpuscripts",
    "peers",
    "photographs",
    "sleeping",
}


def quick_run(name: str, out: Path) -> tuple[list[pairs.Row], str]:
    """The rows that a quick run writes to `out`, and what it prints; no committed result changes."""
    committed = {path.name: path.read_bytes() for path in pairs.FOLDER.glob("*.json")}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--results", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1
    assert {path.name: path.read_bytes() for path in pairs.FOLDER.glob("*.json")} == committed
    line = next(line for line in table.LINES if line.name == name)
    assert line.figure(found["results"])
    return found["results"], done.stdout


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=slow) for name in QUICK_SLOWLY)])
def test_a_quick_run_gives_rows_and_touches_no_committed_result(name: str, tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    rows, said = quick_run(name, tmp_path / "results.json")
    for row in rows:
        assert math.isfinite(row["value"])
        assert row["what"] in said
    assert any(row["target"] is not None for row in rows)


@slow
@pytest.mark.parametrize("name", OWN_ROWS)
def test_a_quick_run_of_a_benchmark_with_rows_of_its_own(name: str, tmp_path: Path) -> None:
    rows, said = quick_run(name, tmp_path / "results.json")
    committed = json.loads((pairs.FOLDER / f"{name}.json").read_text())["results"]
    assert [row["case"] for row in rows] == [row["case"] for row in committed]
    for row, kept in zip(rows, committed, strict=True):
        assert row.keys() == kept.keys()
        assert row["case"] in said


def test_sides_take_turns_after_a_round_that_does_not_count() -> None:
    called: list[str] = []

    def side(name: str) -> float:
        called.append(name)
        return len(called)

    costs = pairs.alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert "".join(called) == "ab" + "ba" + "ab" + "ba"
    assert costs == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_verdicts() -> None:
    assert pairs.verdict(0.95, 0.01, 0.90) == "met"
    assert pairs.verdict(0.85, 0.01, 0.90) == "missed"
    assert pairs.verdict(0.85, 0.06, 0.90) == "too noisy to judge"
    assert pairs.verdict(1.01, 0.01, 1.05, at_most=True) == "met"
    assert pairs.verdict(1.10, 0.01, 1.05, at_most=True) == "missed"
    assert pairs.verdict(2.0, 0.0, 2.0) == pairs.verdict(2.0, 0.0, 2.0, at_most=True) == "met"
    assert pairs.judged("a", "x", 5.0, 0.10, 4.0)["verdict"] == "met"
    assert pairs.judged("a", "x", 3.0, 0.50, 4.0)["verdict"] == "too noisy to judge"  # 3.0 +- 1.5
    assert pairs.judged("a", "x", 3.0, 0.50, None)["verdict"] == "no target"


def test_medians_and_noise() -> None:
    assert pairs.ratio([2, 6, 9], [1, 2, 3]) == 3
    assert pairs.spread([1.0, 1.1, 1.1, 2.2]) == pytest.approx(0.1)
    assert math.isinf(pairs.spread([1.0]))


def test_the_interval_of_a_median_is_the_one_of_the_binomial_distribution() -> None:
    ratios = list(range(1, 25))
    low, high = pairs.interval(ratios, [1] * 24)
    assert (low, high) == (7, 18)  # P(X <= 6) = 0.011, P(X <= 7) = 0.032 for X of binomial(24, 1/2)
    assert all(map(math.isnan, pairs.interval([1, 2, 3], [1] * 3)))


def test_a_missed_target_is_the_exit_status_but_not_of_a_quick_run(tmp_path: Path) -> None:
    rows = [pairs.judged("a", "x", 1.0, 0.01, 4.0)]
    for options, status in ((["--quick"], 0), ([], 1)):
        out = tmp_path / "r.json"
        arguments = pairs.parser("Doc.", 5).parse_args([*options, "--results", str(out)])
        with pytest.raises(SystemExit) as left:
            pairs.finish("x", rows, arguments, {"cores": 1})
        assert left.value.code == status
        assert json.loads(out.read_text())["results"] == rows


def test_a_verdict_of_another_name_counts_and_the_text_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pairs.parser("Doc.", cases=("a", "b")).parse_args(
        ["--results", str(tmp_path / "r.json"), "--case", "b"]
    )
    assert arguments.case == ["b"]
    rows = [{"verdict": "met", "safety_verdict": "missed"}]
    with pytest.raises(SystemExit) as left:
        pairs.finish("x", rows, arguments, {"cores": 1}, "two verdicts")
    assert left.value.code == 1
    assert capsys.readouterr().out == "two verdicts\n"


def test_the_readme_has_the_table_of_the_committed_results() -> None:
    text = table.README.read_text()
    assert table.filled(text) == text, "run python -m benchmarks.table --write"


def test_every_benchmark_is_in_the_table_and_in_make_bench() -> None:
    files = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    runnable = {name for name, text in files.items() if "\ndef main(" in text}
    assert runnable == set(files) - HELPERS
    assert {line.name for line in table.LINES} == runnable
    said = subprocess.run(["make", "-n", "bench"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    (named,) = re.findall(r"for name in ([a-z_ ]+);", said)
    assert set(named.split()) < runnable
