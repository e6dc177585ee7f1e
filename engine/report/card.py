"""The data set card: README.md with Hub front matter, how the set was made, what it is worth, and how to load it."""

from __future__ import annotations

import json

from engine import output
from engine.evaluation.run_summary import arm_images, arm_label, best_control, bracket, copied
from engine.report.facts import Facts
from engine.report.words import headline, run_facts, subtitle
from engine.training.measures import WORDS as METRICS

SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
    (1e9, "100M<n<1B"),
    (1e10, "1B<n<10B"),
    (1e11, "10B<n<100B"),
    (1e12, "100B<n<1T"),
)


def size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for limit, name in SIZES if count < limit), "n>1T")


def text(facts: Facts) -> str:
    """The whole card; raises ValueError where `huggingface_hub` does not accept the front matter."""
    from huggingface_hub import DatasetCard, DatasetCardData

    name, samples = facts.spec.name, facts.manifest.seal.samples
    data = DatasetCardData(
        license="other",
        license_name="choose-one",
        pretty_name=name,
        size_categories=[size_category(samples)],
        task_categories=["image-classification"],
        tags=["synthetic", "webdataset", "mimeo"],
        annotations_creators=["machine-generated"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": f"{output.DATA}/{name}-*.tar"}]}],
    )
    body = "\n".join([_intro(facts), _worth(facts), _loading(facts), _content(facts), _made(facts)])
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _intro(facts: Facts) -> str:
    return f"""# {facts.spec.name}

Synthetic training images, made by mimeo {facts.versions["mimeo"]}. {subtitle(facts)}

The licence above is a placeholder: choose one that the real images and the generator's weights allow.
"""


def _worth(facts: Facts) -> str:
    lines = ["## What it is worth", "", "\n\n".join(headline(facts)), ""]
    if facts.judge is not None:
        lines += [
            facts.judge["covers"],
            "",
            f"| trained on | images | {METRICS[facts.metric]}, % | ratio to real | copy share, % | best control, % |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for arm in facts.arms():
            ratio = "" if arm["ratio"] is None else f"{arm['ratio']:.3f}{bracket(arm['ratio_interval'], 1, 3)}"
            accuracy = f"{arm['mean'] * 100:.1f}{bracket(arm['interval'], 100)}"
            beside = f"{copied(arm)} | {best_control(arm)}"
            lines.append(f"| {arm_label(arm)} | {arm_images(arm)} | {accuracy} | {ratio} | {beside} |")
        if copies := facts.judge.get("copies"):
            lines += ["", copies["covers"]]
        lines += ["", "From `results/judge.json`; `report.html` has the figures."]
    return "\n".join([*lines, ""])


def _loading(facts: Facts) -> str:
    name, ext = facts.spec.name, facts.spec.generate.format
    last = facts.manifest.seal.shards - 1
    shards = f"{output.DATA}/{name}-{{000000..{last:06d}}}.tar" if last else f"{output.DATA}/{name}-000000.tar"
    return f"""## Loading

```python
import webdataset as wds

data = wds.WebDataset("{shards}", shardshuffle=100).shuffle(1000).decode("pil").to_tuple("{ext}", "cls")
```

```python
import timm.data

data = timm.data.create_dataset("wds/.", root="data", split="train", is_training=True, batch_size=64)
```

```python
import datasets

data = datasets.load_dataset("webdataset", data_files="{output.DATA}/{name}-*.tar", split="train")
```

`manifest.parquet` has the size and SHA-256 of every shard; `mimeo verify .` checks them.
"""


def _content(facts: Facts) -> str:
    names = json.dumps(list(facts.catalog.class_names), indent=1)
    ext = facts.spec.generate.format
    return f"""## What is in a sample

`KEY.{ext}` the image, {facts.spec.images.size} x {facts.spec.images.size} RGB; `KEY.cls` its class number; \
`KEY.txt` the prompt; `KEY.json` index, class, prompt,
seed, the real image that it was conditioned on, and the model's digest. Class names by number:

```json
{names}
```
"""


def _private(facts: Facts) -> str:
    if facts.judge is not None and facts.judge.get("copies"):
        return (
            "A copy share like that of real images is no proof of privacy: before you "
            "publish a set made from images that are\nnot public, have its worst cases audited."
        )
    return (
        "Nobody has measured whether they do: check it before you publish a set made from images that are not public."
    )


def _made(facts: Facts) -> str:
    rows = "\n".join(f"{name}: {value}" for name, value in run_facts(facts)).replace("```", "'''")
    return f"""## How it was made

```text
{rows}
```

The images are machine-made and may copy, blur or distort the real ones. {_private(facts)}
"""
