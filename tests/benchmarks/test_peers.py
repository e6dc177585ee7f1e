"""The peers of the engine do what their authors' scripts do, and the benchmark that runs them ends with figures of
every side."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import peer_scripts, peers, photographs
from benchmarks.pairs import verdict
from tests.support.tiers import slow


def work(**changes: Any) -> peers.Work:
    return peers.Work(**{**vars(peers.Work("", "ddim", 2, 1.0, 1.0, 8, 2, "jpg", False)), **changes})


class Flat:
    """A pipeline of flat pictures that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **told: Any) -> Any:
        self.calls.append(told)
        self.images = [Image.new("RGB", (8, 8), (40, 80, 120)) for _ in told["prompt"]]
        return self


def test_the_script_saves_pil_defaults_and_skips_a_batch_by_its_last_file(tmp_path: Path) -> None:
    items, pipeline = [peers.Item("photo", n, 0) for n in range(5)], Flat()
    (tmp_path / "000003.jpg").write_bytes(b"of an earlier run")
    peers.save_all(pipeline, work(), str(tmp_path), items, "jpg")
    assert [len(call["prompt"]) for call in pipeline.calls] == [2, 1]
    assert [g.initial_seed() for call in pipeline.calls for g in call["generator"]] == [0, 1, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.jpg", "000001.jpg", "000003.jpg", "000004.jpg"]
    expected = io.BytesIO()
    Image.new("RGB", (8, 8), (40, 80, 120)).save(expected, "JPEG")
    assert (tmp_path / "000000.jpg").read_bytes() == expected.getvalue()


def test_the_script_reads_the_images_that_it_starts_from(tmp_path: Path) -> None:
    real = photographs.write_folder(tmp_path / "real", 2, (50, 40))
    items, pipeline = [peers.Item("photo", 0, 0, str(path)) for path in sorted(real.rglob("*.jpg"))], Flat()
    peers.draw(pipeline, work(strength=0.5), items)
    assert [image.size for image in pipeline.calls[0]["image"]] == [(8, 8), (8, 8)]
    assert pipeline.calls[0]["strength"] == 0.5


def test_photographs_are_pictures_and_not_noise() -> None:
    found = photographs.crops((64, 48), 4)
    assert found.shape == (4, 48, 64, 3)
    between = np.abs(np.diff(found.astype(float), axis=2)).mean()
    assert between < 40  # neighbours differ by 85 where every pixel is drawn by itself
    assert all(image.std() > 10 for image in found)


def test_a_developed_vae_works_as_before_and_answers_with_photographs() -> None:
    import torch

    asked = []

    def decode(latents: Any, return_dict: bool = True) -> Any:
        asked.append(len(latents))
        return (torch.full((len(latents), 3, 16, 16), float("nan")),)

    developed = photographs.Developed(decode, 16)
    first, second = (developed(torch.zeros(3, 4, 2, 2)).sample for _ in range(2))
    assert asked == [3, 3]
    expected = photographs.crops((16, 16))[:6]
    pixels = ((torch.cat([first, second]) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (pixels == expected).all()


def test_a_miss_is_one_beyond_the_noise() -> None:
    assert [verdict(ratio, 0.05, 1.25) for ratio in (1.1, 1.22, 1.28, 1.4)] == [
        "missed",
        "too noisy to judge",
        "too noisy to judge",
        "met",
    ]


@slow
@pytest.mark.parametrize("case", ["two steps", "img2img"])
def test_a_short_round_of_every_side(case: str, ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit):
        peer_scripts.main(["--quick", "--case", case, "--format", "jpg", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["peer"] for row in found["results"]] == ["script", "ray data"]
    for row in found["results"]:
        assert row["images"] == 8
        assert min(row["seconds"][0].values()) > 0
        assert row["ratio"] == pytest.approx(row["engine_images_per_s"] / row["peer_images_per_s"])
        assert 0.5 < row["engine_kib"] / row["peer_kib"] < 2  # the same pictures at the same quality
