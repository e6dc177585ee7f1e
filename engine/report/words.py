"""The report's sentences: what the numbers say and no more, each with what it was measured on."""

from __future__ import annotations

from engine.evaluation.evaluationresults import JudgedArm
from engine.evaluation.run_summary import bracket, percent
from engine.report.facts import Facts
from engine.spec import RunSpec
from engine.spec.recipe import GenerateSpec
from engine.spec.training import MatchSpec
from engine.training.measures import WORDS as METRICS


def subtitle(facts: Facts) -> str:
    """One line under the title: what went in and what came out."""
    made, classes = facts.manifest.seal.samples, len(facts.catalog.class_names)
    train = facts.splits.get("train", 0)
    return f"{train:,} real training images in {classes:,} classes; {made:,} synthetic images made from them."


def headline(facts: Facts) -> list[str]:
    """What the set is worth to a classifier, as sentences with their sources; the largest multiple speaks for each
    kind."""
    if facts.judge is None:
        return ["No classifier was trained on this set yet: what it is worth has not been measured."]
    seeds = len(facts.judge["seeds"])
    real, synthetic, mixed = (facts.arm(kind) for kind in ("real", "synthetic", "mixed"))
    first = synthetic or mixed or real
    if first is None:
        return ["No arm was judged."]
    unseen = "neither the generator nor a judge" if facts.spec.model.checkpoint is None else "no judge"
    out = [
        f"A classifier trained on {_images(first)} gets {_accuracy(facts, first)} "
        f"{_of(facts)}; {unseen} has trained on "
        f"them.{_against(facts, first, real)}"
    ]
    if mixed is not None and mixed is not first:
        out.append(f"Trained on {_images(mixed)}, it gets {_accuracy(facts, mixed)}{_right(facts)}.{_ratio(mixed)}")
    out += facts.honest()
    level = percent(facts.judge["level"], 0)
    out.append(f"Means of {seeds} judge seed{'s' if seeds > 1 else ''}; brackets are {level} intervals.")
    return out


def _images(arm: JudgedArm) -> str:
    real, made = f"{arm['real_images']:,} real", f"{arm['synthetic_images']:,} synthetic"
    return {
        "real": f"{real} images",
        "synthetic": f"{made} images alone ({arm['multiple']}x)",
        "mixed": f"{real} and {made} images together",
    }[arm["kind"]]


def _accuracy(facts: Facts, arm: JudgedArm) -> str:
    shown = f"{percent(arm['mean'])}{bracket(arm['interval'], 100)}"
    return shown if facts.metric == "accuracy" else f"{METRICS[facts.metric]} {shown}"


def _right(facts: Facts) -> str:
    return " right" if facts.metric == "accuracy" else ""


def _of(facts: Facts) -> str:
    assert facts.judge is not None
    images = f"{facts.judge['n_test']:,} real test images"
    return f"of {images} right" if facts.metric == "accuracy" else f"on {images}"


def _against(facts: Facts, arm: JudgedArm, real: JudgedArm | None) -> str:
    """How an arm compares with the real images that stand behind it."""
    if real is None or arm is real:
        return ""
    return (
        f" Trained on the {real['real_images']:,} real images, it gets "
        f"{_accuracy(facts, real)}{_right(facts)}.{_ratio(arm)}"
    )


def _ratio(arm: JudgedArm) -> str:
    """The ratio to real, and in words whether its interval tells it from 1."""
    if arm["ratio"] is None:
        return ""
    low, high = arm["ratio_interval"]
    if low is None or high is None:
        verdict = "has no interval, as there is one judge seed"
    elif high < 1:
        verdict = "is below 1"
    elif low > 1:
        verdict = "is above 1"
    else:
        verdict = "cannot be told from 1 by these seeds"
    return f" The ratio to real, {arm['ratio']:.3f}{bracket(arm['ratio_interval'], 1, 3)}, {verdict}."


def run_facts(facts: Facts) -> list[tuple[str, str]]:
    """Names and values for the table of facts."""
    spec, seal, generate = facts.spec, facts.manifest.seal, facts.spec.generate
    splits = ", ".join(f"{count:,} {name}" for name, count in facts.splits.items())
    start = (
        "from noise"
        if generate.strength == 1
        else f"strength {generate.strength:g} from a real image ({generate.pairing})"
    )
    rows = [
        ("spec hash", facts.spec_hash),
        ("real data", f"{spec.source.kind}: {splits}"),
        ("generator", _generator(facts)),
        ("checkpoint digest", str(facts.plan.get("checkpoint", "not noted"))),
        (
            "sampling",
            f"{generate.scheduler}, {generate.num_inference_steps} steps, {_guidance(generate)}, {start}",
        ),
        (
            "conditions",
            f"prompt {spec.conditions.prompt!r}{_suffix(generate)}, captions "
            f"{spec.conditions.caption.kind}, {_token(spec)}",
        ),
        *([("prompts cut", "; ".join(facts.cuts.lines) or f"none of {facts.cuts.prompts:,}")] if facts.cuts else []),
        *([("fine-tune", fine_tune(spec.match))] if spec.match is not None else []),
        (
            "synthetic set",
            f"{seal.samples:,} samples in {seal.shards:,} shards, {seal.bytes / 1e6:,.1f} MB, {_format(facts)}",
        ),
        ("seeds", f"run {spec.seed}; one generator; judge {_judge_seeds(facts)}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    if facts.seconds:
        rows.append(("seconds by stage", ", ".join(f"{name} {value:,.0f}" for name, value in facts.seconds.items())))
    return rows


def fine_tune(match: MatchSpec) -> str:
    """What was trained by distribution matching, and how."""
    targets = match.targets if isinstance(match.targets, str) else ", ".join(match.targets)
    kind = f"LoRA of rank {match.rank} on {targets}" if match.adapter == "lora" else "all weights of the denoiser"
    term = "no MMD term" if match.mmd == "none" else f"MMD term {match.mmd} with weight {match.mmd_weight:g}"
    return f"{kind}; {term}; {match.steps:,} steps of {match.batch * match.accumulate} images"


def _guidance(generate: GenerateSpec) -> str:
    on = "" if generate.guidance_on == "both" else f" on the {generate.guidance_on} only"
    return f"guidance {generate.guidance_scale:g}{on}"


def _suffix(generate: GenerateSpec) -> str:
    return f" and suffix {generate.quality_suffix!r}" if generate.quality_suffix else ""


def _token(spec: RunSpec) -> str:
    token = spec.generate.visual_token
    normalised = spec.conditions.features.normalise and token != "none"
    return f"visual token {token}{' (normalised)' if normalised else ''}"


def _generator(facts: Facts) -> str:
    model = facts.spec.model
    if model.checkpoint is None:
        return "closed set: trained from scratch on the training split alone (model/)"
    name = model.checkpoint.rstrip("/").rpartition("/")[2] if model.checkpoint.startswith("/") else model.checkpoint
    lora = f" with LoRA {model.lora.rpartition('/')[2]} at {model.lora_scale:g}" if model.lora else ""
    return f"{name}{lora}, {model.dtype}; it may have seen more than the training split"


def _format(facts: Facts) -> str:
    generate = facts.spec.generate
    return generate.format if generate.format == "png" else f"{generate.format} quality {generate.quality}"


def _judge_seeds(facts: Facts) -> str:
    return ", ".join(str(seed) for seed in facts.judge["seeds"]) if facts.judge else "not run"
