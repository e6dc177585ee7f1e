"""The GPU benchmark runs every part with tiny shapes, and its FLOPs and shapes are the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu, gpumodels
from tests.support.tiers import slow


def test_dit_costs_what_its_paper_says() -> None:
    """118.6 Gflops (multiply-adds) for XL/2 at 256 pixels: arXiv 2212.09748, table 1."""
    counted = gpumodels.flops("dit", 20, tiny=False)
    assert counted["forward"] / 2 == pytest.approx(118.6e9, rel=0.01)
    assert counted["image"] == 40 * counted["forward"] + counted["decode"]


def test_the_unets_have_the_published_numbers_of_parameters() -> None:
    found = {kind: gpumodels.flops(kind, 1, tiny=False)["parameters"] for kind in ("sd15", "sdxl")}
    assert found == {"sd15": 859_520_964, "sdxl": 2_567_463_684}


@pytest.mark.parametrize("part", [pytest.param(part, marks=() if part == "switches" else slow) for part in gpu.PARTS])
def test_a_quick_run_of_every_part(part: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--quick", "--part", part, "--results", str(tmp_path)])
    assert not ended.value.code
    found = json.loads((tmp_path / f"gpu_{part}.json").read_text())
    assert found["results"]
    assert "--quick" in found["machine"]["command"]
    if part == "switches":
        rows = {row["switch"]: row for row in found["results"]}
        assert {rows[name]["verdict"] for name in ("channels_last", "fuse_qkv", "sdpa math")} == {"exact"}


def test_a_switch_that_changes_the_answer_is_seen() -> None:
    import torch

    unet = gpumodels.pipeline("sd15", "cpu", "float32", True).unet
    with torch.inference_mode():
        reference = gpu.answer(unet, "cpu", torch.float32)
        next(unet.parameters()).add_(0.05)
        assert gpu.error(gpu.answer(unet, "cpu", torch.float32), reference) > gpu.EXACT
