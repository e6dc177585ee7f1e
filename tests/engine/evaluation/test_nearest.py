"""Nearest images against a brute force over all pairs, mirror images and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.evaluation import nearest
from engine.evaluation.nearest import FeatureSpace, PixelSpace, cross, is_grey, sample, views
from engine.training.judge_model import Judge, normalise


def images(count: int, seed: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def moved(image: np.ndarray, mirror: bool, y: int, x: int) -> np.ndarray:
    """One image mirrored and shifted pixel by pixel, its edge repeated."""
    side = len(image)
    source = image[:, ::-1] if mirror else image
    out = np.empty_like(source)
    for row in range(side):
        for column in range(side):
            out[row, column] = source[min(max(row + y, 0), side - 1), min(max(column + x, 0), side - 1)]
    return out


def brute(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(N, M) root mean square differences, smallest over all moves of the real image."""
    out = np.full((len(made), len(real)), np.inf)
    for k, image in enumerate(real):
        for mirror in (False, True):
            for y in (-1, 0, 1):
                for x in (-1, 0, 1):
                    other = moved(image, mirror, y, x).astype(float)
                    out[:, k] = np.minimum(out[:, k], np.sqrt(((made - other) ** 2).mean(axis=(1, 2, 3))))
    return out


@pytest.mark.parametrize("edges", [(), (4,), (4, 9), (4, 11)])
@pytest.mark.parametrize("held", [5, 100])
def test_pixels_against_brute_force(monkeypatch: pytest.MonkeyPatch, edges: tuple[int, ...], held: int) -> None:
    monkeypatch.setattr(nearest, "ROWS", 3)
    monkeypatch.setattr(nearest, "COLUMNS", 4)
    monkeypatch.setattr(nearest, "HELD_BYTES", held * 4 * 6 * 6 * 3)
    real = images(7, 0)
    made = np.concatenate([images(8, 1), moved(real[5], True, 1, -1)[None], real[2:3], images(1, 2)])
    found, expected = cross(PixelSpace(grey=False), made, real, edges), brute(made, real)
    assert found.distance == pytest.approx(expected.min(1), abs=1e-4)
    assert np.array_equal(found.index, expected.argmin(1))
    assert found.distance[8] == found.distance[9] == 0
    assert found.index[8:10].tolist() == [5, 2]
    assert found.back.shape == (len(edges), 7)
    for row, edge in zip(found.back, edges, strict=True):
        assert row == pytest.approx(expected[:edge].min(0), abs=0.05)


def test_grey_images_need_one_channel() -> None:
    made, real = (images(n, n)[..., :1].repeat(3, axis=3) for n in (4, 5))
    assert is_grey(made)
    assert not is_grey(images(4, 4))
    assert cross(PixelSpace(grey=True), made, real).distance == pytest.approx(brute(made, real).min(1), abs=1e-4)


def test_the_first_view_is_the_image_itself_and_all_differ() -> None:
    found = list(views(images(1, 3)))
    assert np.array_equal(found[0], images(1, 3))
    assert len({view.tobytes() for view in found}) == 18


def test_features_against_brute_force() -> None:
    torch.manual_seed(0)
    model = Judge(8, 3, 4).eval()
    made, real = images(5, 1, 8), images(6, 2, 8)

    def features(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.features(normalise(torch.tensor(pixels.copy()))).mean(dim=(2, 3)).double().numpy()

    both = np.stack([features(real), features(real[:, :, ::-1])])
    expected = np.linalg.norm(features(made)[:, None, None] - both[None], axis=3).min(1)
    found = cross(FeatureSpace(model), made, real, (5,))
    assert found.distance == pytest.approx(expected.min(1), abs=1e-6)
    assert np.array_equal(found.index, expected.argmin(1))
    assert found.back[0] == pytest.approx(expected.min(0), abs=1e-3)


def test_samples_are_spread_over_the_set() -> None:
    assert sample(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert sample(101, 3).tolist() == [0, 50, 100]
