"""A sample of `docs/samplers.md`: what the table says of these cells is so, and nothing in it is neither equal nor
refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.diffusion import schedulers
from tests.support.samplers import EQUAL, FAILS, KINDS, LOST, OPEN, STEPS, configs, outcome

TABLE = Path(__file__).resolve().parents[4] / "docs" / "samplers.md"
SAMPLE = [
    (kind, config, sampler)
    for kind in KINDS
    for n, config in enumerate(configs(kind))
    for m, sampler in enumerate(schedulers.FLOW if kind == "sd3" else schedulers.DIFFUSION)
    if kind == "sd3" or (n + 3 * m + 7 * KINDS.index(kind)) % 40 == 0
]


def marks() -> dict[tuple[str, str, str], str]:
    found = {}
    for kind, table in re.findall(r"^## (\w+)\n\n(\|.*?)\n(?:\n|$)", TABLE.read_text() + "\n", re.M | re.S):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        found |= {
            (kind, row[0], sampler): mark for row in rows for sampler, mark in zip(head[1:], row[1:], strict=True)
        }
    return found


def test_every_cell_is_equal_to_stock_diffusers_or_refused() -> None:
    found = marks()
    assert len(found) == sum(len(configs(kind)) * (2 if kind == "sd3" else 20) for kind in KINDS)
    assert {mark for cell in found.values() for mark in cell} <= {EQUAL, LOST, FAILS, OPEN}
    assert not any(OPEN in cell[: STEPS.index(1000)] for cell in found.values())
    assert {len(cell) for cell in found.values()} == {len(STEPS)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_says_what_is_so(kind: str) -> None:
    """For 3 steps; an image a cell by the engine, one by the stock pipeline."""
    found = marks()
    cells = [(config, sampler) for one, config, sampler in SAMPLE if one == kind]
    assert cells
    for config, sampler in cells:
        assert outcome(kind, config, sampler, 3).mark == found[kind, config, sampler][STEPS.index(3)], (config, sampler)
