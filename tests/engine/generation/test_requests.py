"""What the sampler is asked: the right feature in the token's place, the right prompt, and latents only where they are
used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.conditions.table import Conditions
from engine.conditions.tokens import Fits
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.spec import RunSpec, validate

LABELS = np.array([0, 1, 1, 1, 2, 2, 0], np.int32)
FEATURES = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
CONDITIONS = Conditions(
    keys=tuple("abcdefg"),
    labels=LABELS,
    captions=("",) * 7,
    prompts=tuple(f"prompt {i}" for i in range(7)),
    features=FEATURES,
    class_means=np.stack([FEATURES[k == LABELS].mean(0) for k in range(3)]),
    class_names=("x", "y", "z"),
    fits=Fits(np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32), np.array([0.2, 0.5, 0.3]), 0.6),
)


def make_spec(**generate: Any) -> RunSpec:
    return validate({"name": "r", "source": {"kind": "digits"}, "generate": {"count": 12, **generate}})


class Latents:
    """Stands for the sampler's VAE: a latent that names its picture."""

    def encode_latents(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)[:, :4].astype(np.float32).reshape(-1, 4, 1, 1)


def ask(spec: RunSpec, real: np.ndarray | None = None) -> tuple[Plan, list[Any]]:
    plan = Plan(spec, LABELS, CONDITIONS.class_names)
    requests = Requests(spec, CONDITIONS, None if real is None else lambda rows: real[rows])
    rows, facts = plan.rows(0, 12), plan.facts(0, 12, CONDITIONS.keys, CONDITIONS.prompts)
    positions = [1, 4, 7, 11]
    pixels = requests.real_pixels(rows.init_row[positions])
    return plan, requests.make(rows, facts, positions, plan.seeds(rows.index[positions], 2).tolist(), pixels, Latents())


def expected_token(kind: str, row: int, anchor: int, seed: int) -> np.ndarray | None:
    label = int(LABELS[anchor])
    random = np.random.Generator(np.random.PCG64(seed))
    if kind in ("class_gaussian", "prior"):
        assert CONDITIONS.fits is not None
        own, share = FEATURES[label == LABELS].astype(np.float64), CONDITIONS.fits.shrinkage[label]
        mean, root = own.mean(0), np.concatenate([own - own.mean(0), CONDITIONS.fits.root.T])
        scales = np.repeat([(1 - share) / (len(own) - 1), share], [len(own), 4])
        noise = random.standard_normal(len(own) + 4) * np.sqrt(scales) @ root
        h = 0.6 if kind == "prior" else 1.0
        return mean + np.sqrt(1 - h * h) * (FEATURES[anchor] - mean) + h * noise
    if kind == "interpolation":
        assert row != anchor
        weight, (a, b) = 0.25 + 0.5 * random.random(), FEATURES[[anchor, row]].astype(np.float64)
        basis = np.linalg.qr(np.stack([a, b]).T)[0]  # the plane of both, in which the arc is a turn
        (x, y), (u, v) = a @ basis, b @ basis
        turn = (np.arctan2(v, u) - np.arctan2(y, x) + np.pi) % (2 * np.pi) - np.pi
        angle, length = np.arctan2(y, x) + weight * turn, (1 - weight) * np.hypot(x, y) + weight * np.hypot(u, v)
        return length * (basis @ [np.cos(angle), np.sin(angle)])
    return {"own": FEATURES[anchor], "class": FEATURES[row], "class_mean": FEATURES[label == LABELS].mean(0)}.get(kind)


def test_the_quality_suffix_is_drawn_with_and_planned() -> None:
    plan, asked = ask(make_spec(quality_suffix=", best quality"))
    planned = [fact["prompt"] for fact in plan.facts(0, 12, CONDITIONS.keys, CONDITIONS.prompts)]
    anchors = plan.rows(0, 12).anchor
    assert planned == [f"prompt {anchor}, best quality" for anchor in anchors]
    assert [request.prompt for request in asked] == [planned[position] for position in (1, 4, 7, 11)]
    digests = {
        Plan(make_spec(quality_suffix=suffix), LABELS, CONDITIONS.class_names).digest(
            0, 12, CONDITIONS.keys, CONDITIONS.prompts
        )
        for suffix in ("", ", best quality")
    }
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["own", "class", "interpolation", "class_mean", "class_gaussian", "prior", "none"])
def test_visual_tokens(kind: str) -> None:
    plan, asked = ask(make_spec(visual_token=kind))
    rows = plan.rows(0, 12)
    for position, request in zip([1, 4, 7, 11], asked, strict=True):
        anchor = int(rows.anchor[position])
        seed = int(plan.seeds(rows.index[position : position + 1], 2)[0])
        assert (request.prompt, request.seed, request.init_latents) == (f"prompt {anchor}", seed, None)
        assert request.label == LABELS[anchor]
        expected = expected_token(kind, int(rows.token_row[position]), anchor, seed)
        if expected is None:
            assert request.token is None
        else:
            np.testing.assert_allclose(request.token, expected, rtol=1e-5, atol=1e-6)


def test_latents_come_from_the_planned_images_when_strength_is_below_one() -> None:
    real = np.random.default_rng(2).integers(0, 256, (7, 2, 2, 3)).astype(np.uint8)
    plan, asked = ask(make_spec(strength=0.5, pairing="class"), real)
    rows = plan.rows(0, 12)
    for position, request in zip([1, 4, 7, 11], asked, strict=True):
        assert request.init_latents.ravel().tolist() == real[rows.init_row[position]].ravel()[:4].tolist()


def test_real_images_are_not_read_at_full_strength() -> None:
    def refuse(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    requests = Requests(make_spec(pairing="own"), CONDITIONS, refuse)
    assert not requests.needs_real_pixels
    assert requests.real_pixels(np.array([0])) is None
