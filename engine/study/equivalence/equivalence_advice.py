"""What an equivalence study says in words: the worth of what was drawn, the price, and whether to draw more, label more
or stop."""

from __future__ import annotations

import numpy as np

from engine.study.equivalence.fit import gained
from engine.study.publishedresults import Advised, EquivalenceFindings, PricedBase
from engine.study.studyresults import Amount

WORTHWHILE = 0.1  # of the base: the further real images that drawing as many again must be worth to be advised


def advice(result: EquivalenceFindings) -> list[Advised]:
    """For each base `action` (generate, label or stop) and `text`."""
    return [_advice(base, result) for base in result["bases"]]


def _advice(base: PricedBase, result: EquivalenceFindings) -> Advised:
    last, n = base["amounts"][-1], base["base"]
    if base["verdict"].startswith("not identifiable: real accuracy is saturated"):
        text = "stop: further real images do not raise the accuracy measurably, so none of either kind has a price"
        return _entry(n, "stop", text)
    if base["verdict"] != "identifiable":
        settled = base["verdict"].startswith(("no value", "not of this form"))
        hope = "" if settled else "; more repeats would narrow it"
        return _entry(n, "label", f"label more: {base['verdict']}{hope}")
    worth = worth_words(last)
    if last["at_least"]:
        text = f"stop, or measure with more real images: {worth}, which is all of the real curve"
        return _entry(n, "stop", text)
    more = further(base, result)
    if more >= WORTHWHILE * n:
        text = f"generate more: {worth}; by the fit, as many again would be worth about {more:,.0f} further real images"
        return _entry(n, "generate", text)
    text = f"label more: {worth}; by the fit, as many again would be worth only about {more:,.0f} further real images"
    return _entry(n, "label", text)


def _entry(base: int, action: str, text: str) -> Advised:
    return {"base": base, "action": action, "text": f"with {base:,} real images, {text}"}


def further(base: PricedBase, result: EquivalenceFindings) -> float:
    """What as many synthetic images again as the largest amount would be worth in real ones, by the fit (an
    extrapolation)."""
    assert result["c2"] is not None
    assert base["marginal_price"] is not None
    c = float(np.log(result["c2"]["value"]))
    v, y = 1 / base["marginal_price"]["value"], float(base["amounts"][-1]["multiple"])
    x = gained(np.array(c), np.array(v), np.array([y, 2 * y]))
    return float((x[1] - x[0]) * base["base"])


def worth_words(amount: Amount) -> str:
    """Such as `2,000 synthetic images are worth 150 real ones (95 % 90 to 230)`; an end that the real curve does not
    reach is left open."""
    low, high = amount["worth_interval"]
    if amount["at_least"]:
        return f"{amount['synthetic']:,} synthetic images are worth at least {amount['worth']:,.0f} further real ones"
    ends = f"from {low:,.0f}, no upper end" if high is None else f"{low:,.0f} to {high:,.0f}"
    return f"{amount['synthetic']:,} synthetic images are worth {amount['worth']:,.0f} further real ones (95 % {ends})"
