"""What to do next, derived from a run's numbers: every rule names the number that triggers it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.evaluation.evaluationresults import JudgedArm
from engine.evaluation.run_summary import arm_label, bracket, percent
from engine.generation.gate import advice as gate_advice
from engine.report.facts import Facts
from engine.statistics.intervals import binomial_error, mean_interval, ratio_interval
from engine.statistics.nested import NO_VERDICT
from engine.training.measures import WORDS as METRICS

CLAIM_SEEDS = 5  # fewer are not enough for a claim: controls and small effects need paired intervals
VALIDATION = 0.2  # of the images: the validation split to ask for
MORE = 3  # how many times the largest multiple to try next


@dataclass(frozen=True)
class Advice:
    """One thing to do: a short title, why (with the numbers), and a command to run in the run's folder."""

    title: str
    text: str
    command: str | None = None


def advise(facts: Facts) -> list[Advice]:
    """What the numbers suggest, most useful first."""
    if facts.judge is None:
        command = "mimeo judge spec.yaml --output ."
        text = "No classifier was trained on this set yet, so nothing here says how useful it is."
        return [Advice("Find out what the set is worth", text, command), *_repairs(facts)]
    found = [*_copies(facts), *_choices(facts), *_classes(facts), *_precision(facts), *_repairs(facts)]
    return found or [
        Advice("Nothing stands out", "No rule found a weak class, a loss of samples or an unclear result.")
    ]


def _choices(facts: Facts) -> Iterator[Advice]:
    """Which amount, and whether to mix: by validation images, or not at all."""
    if all(arm["kind"] not in ("synthetic", "mixed") for arm in facts.arms()):
        return
    if any(arm.get("validation") is None for arm in facts.arms() if arm["kind"] in ("real", "synthetic", "mixed")):
        text = (
            "An amount, or mixing, that is chosen on the test images is no longer measured "
            "by them, so nothing is advised on either."
        )
        command = _run(facts, "held", split__validation=VALIDATION)
        yield Advice("Hold out validation images before you choose an amount", text, command)
        return
    for one in (*_amount(facts), *_mixing(facts)):
        yield replace(one, text=f"{one.text} By validation images; {NO_VERDICT}.")


def _run(facts: Facts, what: str, **settings: object) -> str:
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    changed = " ".join(f"--set {shlex.quote(pair)}" for pair in pairs)
    return f"mimeo run spec.yaml {changed} --output ../{facts.spec.name}-{what}"


def _values(arm: JudgedArm) -> list[float]:
    """The metric of each seed on VALIDATION images: what is chosen on test images is no longer measured by them."""
    held = arm.get("validation")
    assert held is not None
    return list(held)


def _ratio_interval(facts: Facts, arm: JudgedArm) -> list[float | None]:
    """The ratio to real on validation images, paired by judge seed."""
    real = facts.arm("real")
    return [None, None] if real is None else ratio_interval(_values(arm), _values(real)).as_list()


def _points(values: list[float] | tuple[float, ...]) -> str:
    """A mean difference in points with its interval, such as `+5.4 points [4.1, 6.7]`."""
    interval = mean_interval(values)
    return f"{sum(values) / len(values) * 100:+.1f} points{bracket(interval.as_list(), 100)}"


def _copies(facts: Facts) -> Iterator[Advice]:
    arm = facts.arm("synthetic") or facts.arm("mixed")
    copies = None if arm is None else arm.get("copies")
    if copies is None or copies["verdict"] != "copies":
        return
    share, null = copies["pixels"]["share"], copies["pixels"]["null"]
    text = (
        f"Copy share {percent(share)} in pixels, {percent(copies['features']['share'])} in "
        "features, where real images have "
        f"{percent(null)}. What it is worth may be what its training images are worth, and it does not hide them."
    )
    steps = facts.spec.pretrain.unet.steps
    closed = facts.spec.model.checkpoint is None and facts.spec.pretrain.denoiser == "unet"
    command = _run(facts, "shorter", pretrain__unet__steps=max(1, steps // 2)) if closed else None
    yield Advice("Do not take this set for new data: it copies", text, command)


def _amount(facts: Facts) -> Iterator[Advice]:
    arms = [arm for arm in facts.arms() if arm["kind"] == "synthetic"]
    if not arms:
        return
    assert facts.judge is not None
    largest, n = arms[-1], facts.judge["n_train"]
    multiples = [arm["multiple"] for arm in arms]
    more = [*multiples, largest["multiple"] * MORE]
    command = _run(facts, "more", generate__count=more[-1] * n, judge__multiples=str(more).replace(" ", ""))
    ceiling = _ratio_interval(facts, largest)[1]
    behind = ceiling is not None and ceiling < 1
    if len(arms) == 1:
        if behind:
            text = (
                f"{arm_label(largest)} alone stays behind real (ratio {_ratio(facts, largest)}), "
                "and no larger amount was tried."
            )
            yield Advice("Generate more", text, command)
        return
    gains = [b - a for a, b in zip(_values(arms[-2]), _values(largest), strict=True)]
    step = (
        f"From {multiples[-2]}x to {multiples[-1]}x the {METRICS[facts.metric]} of "
        f"synthetic-only training changed by {_points(gains)}"
    )
    low, high = mean_interval(gains).as_list()
    if low is not None and low > 0:
        yield Advice("Generate more", f"{step}: it is still rising.", command)
    elif high is not None and high < 0:
        yield Advice(f"Use {multiples[-2]}x rather than {multiples[-1]}x", f"{step}: more of the same hurts.")
    else:
        text = f"{step}, which these seeds cannot tell from nothing."
        yield Advice("Do not expect much from more samples of this generator", text)
        if behind:
            yield _better_generator(facts, largest)


def _better_generator(facts: Facts, arm: JudgedArm) -> Advice:
    text = f"{arm_label(arm)} alone stays behind real (ratio {_ratio(facts, arm)}) although more samples no longer help"
    guidance = facts.spec.generate.guidance_scale
    if facts.spec.model.checkpoint is None:
        part, steps = facts.spec.pretrain.kind, facts.spec.pretrain.trained.steps
        command = _run(facts, "longer", **{f"pretrain__{part}__steps": 2 * steps})
        name = {"unet": "U-Net", "dit": "DiT", "pixel": "U-Net in pixels"}[part]
        return Advice("Train the generator longer", f"{text}; its {name} saw {steps:,} steps.", command)
    return Advice(
        "Improve the generator",
        f"{text}. Fine-tune it on the training images, or try another guidance than {guidance:g}.",
    )


def _ratio(facts: Facts, arm: JudgedArm) -> str:
    real = facts.arm("real")
    ratio = "not known" if real is None else f"{sum(_values(arm)) / sum(_values(real)):.3f}"
    return f"{ratio}{bracket(_ratio_interval(facts, arm), 1, 3)}"


def _mixing(facts: Facts) -> Iterator[Advice]:
    arm = facts.arm("mixed")
    if arm is None or facts.arm("real") is None:
        return
    low, high = _ratio_interval(facts, arm)
    if low is None or high is None:
        return
    both, text = arm_label(arm), f"{arm_label(arm)} against real alone: ratio {_ratio(facts, arm)}."
    if low > 1:
        beaten = arm.get("control", {}).get("finding") == "better"
        more = " So does a control, and more: see the controls first." if beaten else ""
        yield Advice("Train on both", f"{text} Adding the synthetic images to the real ones helps.{more}")
    elif high < 1:
        yield Advice(f"Do not add this much: {both} is worse than real alone", text)
    else:
        yield Advice("Mixing is a choice, not a gain", f"{text} These seeds cannot tell the two apart.")


def _classes(facts: Facts) -> Iterator[Advice]:
    assert facts.judge is not None
    names, sizes = facts.catalog.class_names, facts.judge["test_per_class"]
    synthetic, real = facts.arm("synthetic"), facts.arm("real")
    if synthetic is not None and (worst := _weakest(synthetic, sizes)) is not None:
        text = f"Synthetic-only training gets {_share(synthetic, worst)} of it right"
        text += f", real-only {_share(real, worst)}" if real is not None else ""
        taken = next((entry for entry in synthetic["confusions"] if entry[0] == worst), None)
        if taken is not None:
            text += f"; most often it is taken for {_quoted(names[int(taken[1])])}"
        yield Advice(f"Look at class {_quoted(names[worst])}", f"{text}. Compare its images below.")
    if real is not None and (worst := _weakest(real, sizes)) is not None:
        count = _count(facts, worst)
        text = (
            f"Training on the real images alone gets {_share(real, worst)} of it right, over "
            f"all classes {percent(_overall(real))}."
        )
        yield Advice(f"Label more of class {_quoted(names[worst])}", f"{text} It has {count:,} training images.")


def _quoted(name: str) -> str:
    return f"\u201c{name}\u201d"


def _share(arm: JudgedArm, label: int) -> str:
    share = arm["per_class"][label]
    assert share is not None  # the class has test images
    return percent(share)


def _count(facts: Facts, label: int) -> int:
    return sum(1 for own in facts.catalog.split("train")["label"].to_pylist() if own == label)


def _weakest(arm: JudgedArm, sizes: list[int]) -> int | None:
    """The class with the lowest accuracy, if it lies more than two binomial standard errors below the arm's mean."""
    known = [(value, label) for label, value in enumerate(arm["per_class"]) if value is not None]
    value, label = min(known)
    mean = _overall(arm)
    return label if value < mean - 2 * binomial_error(mean, sizes[label]) else None


def _overall(arm: JudgedArm) -> float:
    return float(sum(arm["accuracies"]) / len(arm["accuracies"]))


def _precision(facts: Facts) -> Iterator[Advice]:
    judge = facts.judge
    arm = facts.arm("synthetic") or facts.arm("real")
    if judge is None or arm is None:
        return
    seeds, (low, high) = len(judge["seeds"]), arm["interval"]
    if seeds < CLAIM_SEEDS:
        told = "One judge seed gives no interval"
        if low is not None and high is not None:
            told = f"{seeds} judge seeds leave {(high - low) * 50:.1f} points to each side ({arm_label(arm)})"
        text = f"{told}; a claim needs at least {CLAIM_SEEDS} seeds."
        command = _run(facts, "seeds", judge__seeds=CLAIM_SEEDS)
        yield Advice("Repeat with more seeds before you claim a difference", text, command)
    if low is not None and high is not None and 2 * arm["test_error"] > (high - low) / 2:
        text = (
            f"{judge['n_test']:,} test images alone leave {2 * arm['test_error'] * 100:.1f} "
            "points to each side (two standard errors), "
        )
        text += f"more than the judge seeds do ({(high - low) * 50:.1f})."
        yield Advice("Hold out more real images for the test", text)


def _repairs(facts: Facts) -> Iterator[Advice]:
    if facts.cuts is not None and facts.cuts.cut:
        text = (
            f"{facts.cuts.lines[0]}. Such as {_quoted(facts.cuts.example)}, which is read as "
            f"{_quoted(facts.cuts.kept)}."
        )
        yield Advice("Shorten the prompts", text)
    if facts.quarantined:
        (reason, count), total = facts.quarantined.most_common(1)[0], facts.quarantined.total()
        planned = facts.manifest.seal.facts.count
        text = (
            f"Given up: {total:,} of {planned:,} samples, most often for {reason} ({count:,}); {gate_advice(reason)}."
        )
        yield Advice("See why samples were quarantined", text)
    if facts.bad_images:
        reason, count = facts.bad_images.most_common(1)[0]
        text = (
            f"Set aside: {facts.bad_images.total():,}, most often for {reason} ({count:,}); "
            "catalog/quarantine.parquet lists them."
        )
        yield Advice("Repair or remove bad real images", text)
