"""Figures as SVG: valid, deterministic, free of styles and scripts, readable without colour."""

from __future__ import annotations

import re
from typing import get_args
from xml.etree import ElementTree

import pytest

from engine.evaluation.controls import WORDS
from engine.report.figures import PALETTE, Bar, accuracy, curve, hue
from engine.spec.classifier import ArmKind

BARS = [
    Bar("real", "real", 96.9, (95.1, 98.6), (96.8, 96.2, 97.7)),
    Bar("synthetic 1x", "synthetic", 91.1, (87.0, 95.0), (90.0, 91.0, 92.3)),
    Bar("real + synthetic 1x", "mixed", 97.2, (96.5, 98.0), (97.0, 97.2, 97.4)),
]
FIGURES = {
    "accuracy": lambda: accuracy(BARS),
    "one seed": lambda: accuracy([Bar("real", "real", 50.0, (None, None), (50.0,))]),
    "perfect": lambda: accuracy([Bar("real", "real", 100.0, (100.0, 100.0), (100.0, 100.0))]),
    "curve": lambda: curve("unet", "loss", list(range(1, 701)), [1 / step for step in range(1, 701)]),
    "negative": lambda: curve("vae", "loss", [1, 2, 3], [1.0, -2.0, 0.0]),
}


def elements(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter())


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_that_a_strict_policy_forbids(name: str) -> None:
    svg = str(FIGURES[name]())
    found = elements(svg)
    assert {element.tag.rpartition("}")[2] for element in found} <= {
        "svg",
        "defs",
        "g",
        "path",
        "use",
        "text",
        "clipPath",
        "rect",
    }
    for element in found:
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            assert "style" not in key
            if "href" in key:
                assert value.startswith("#")
    assert not any(colour in svg for colour in PALETTE.values())


@pytest.mark.parametrize("name", FIGURES)
def test_ids_are_unique_prefixed_and_referred_to(name: str) -> None:
    svg = str(FIGURES[name]())
    ids = [element.attrib["id"] for element in elements(svg) if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert len({i.split("-", 1)[0] for i in ids}) == 1
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= set(ids)


def test_equal_numbers_give_equal_bytes() -> None:
    assert accuracy(BARS) == accuracy(BARS)
    assert accuracy(BARS) != accuracy(BARS[:2])


def test_text_says_the_numbers() -> None:
    svg = str(accuracy(BARS))
    texts = [element.text for element in elements(svg) if element.tag.endswith("text")]
    assert {"96.9", "91.1", "97.2", "synthetic 1x"} <= set(texts)
    assert "synthetic 1x: 91.1 %" in elements(svg)[0].attrib["aria-label"]


def test_labels_are_never_read_as_mathematics() -> None:
    texts = [e.text for e in elements(str(accuracy([Bar("$\\frac{x}", "real", 1.0, (0.5, 1.5), (1.0,))]))) if e.text]
    assert "$\\frac{x}" in texts


def test_means_stand_at_their_place_on_the_axis() -> None:
    places = {}
    for element in elements(str(accuracy(BARS))):
        if element.tag.endswith("use"):
            places[element.attrib["fill"]] = float(element.attrib["x"])  # an arm's mean is drawn after its seeds
    real, synthetic, mixed = (places[f"var(--{kind})"] for kind in ("real", "synthetic", "mixed"))
    assert (synthetic - real) / (mixed - real) == pytest.approx((91.1 - 96.9) / (97.2 - 96.9), rel=1e-3)


def test_a_long_curve_is_thinned() -> None:
    svg = str(curve("unet", "loss", list(range(1, 100_001)), [1.0] * 100_000))
    assert len(svg) < 60_000


@pytest.mark.parametrize("kind", ["synthetic", "mixed", *WORDS, *get_args(ArmKind)])
def test_every_kind_of_arm_has_a_colour(kind: str) -> None:
    assert hue(f"{kind}_1x") in PALETTE
