"""What the sampler is asked: the right feature in the token's place, the right prompt, and latents only where they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.conditions.table import Conditions
from engine.generation.plan import Plan
from engine.generation.requests import Requests
from engine.spec import RunSpec, validate

LABELS = np.array([0, 1, 1, 1, 2, 2], np.int32)
FEATURES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
CONDITIONS = Conditions(
    keys=tuple("abcdef"),
    labels=LABELS,
    captions=("",) * 6,
    prompts=tuple(f"prompt {i}" for i in range(6)),
    features=FEATURES,
    class_means=np.stack([FEATURES[k == LABELS].mean(0) for k in range(3)]),
    class_names=("x", "y", "z"),
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
    if kind == "class_gaussian":
        own = FEATURES[label == LABELS].astype(np.float64)
        if len(own) == 1:
            return own[0]
        weights = np.random.Generator(np.random.PCG64(seed)).standard_normal(len(own))
        return own.mean(0) + weights @ (own - own.mean(0)) / np.sqrt(len(own) - 1)
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


@pytest.mark.parametrize("kind", ["own", "class", "class_mean", "class_gaussian", "none"])
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
    real = np.random.default_rng(2).integers(0, 256, (6, 2, 2, 3)).astype(np.uint8)
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
