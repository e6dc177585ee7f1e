"""What can be said of a fine-tune without torch: whether the recipe can work, and where its result lies."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ConfigError
from engine.spec import RunSpec
from engine.storage.store import Store

FOLDER = "match/model"
MARKER = "match/mimeo.json"
RESULTS = "results/match.json"
WEIGHTS = "pytorch_lora_weights.safetensors"


def precheck(spec: RunSpec) -> None:
    """Refuse, in one line (ConfigError), a fine-tune that cannot work whatever the data and the model are."""
    match, workers = spec.match, spec.resources.train_workers
    if match is None:
        return
    if spec.model.lora is not None and match.adapter == "lora":
        what = "names a LoRA, and match trains one"
        raise ConfigError("model.lora", what, "leave out one of them, or set match.adapter to full")
    for count in range(spec.resources.train_workers_min or workers, workers + 1):
        if match.batch % count:
            what = f"{count} workers cannot share match.batch {match.batch} evenly"
            raise ConfigError("resources.train_workers", what, "choose a number that divides the batch")
    if isinstance(spec.split.train, int) and workers > spec.split.train:
        what = f"{workers} workers are more than the {spec.split.train} training images"
        raise ConfigError("resources.train_workers", what, "ask for fewer")


def check_place(spec: RunSpec, store: Store) -> None:
    """Refuse an output where the workers could not open the fine-tuned model (ConfigError)."""
    if spec.match is not None and store.local(FOLDER) is None:
        fix = "use an output on a disk that every node sees, and copy it afterwards"
        raise ConfigError("match", "writes a model, which cannot be opened in place on an object store", fix)


def lora_of(spec: RunSpec, store: Store) -> Path | None:
    """The LoRA that the run draws with: the one that its fine-tune writes, or the recipe's; None where it has none."""
    if spec.match is not None and spec.match.adapter == "lora":
        return store.local(f"{FOLDER}/{WEIGHTS}")
    return Path(spec.model.lora) if spec.model.lora is not None else None


def model_of(spec: RunSpec, store: Store) -> Path | None:
    """The checkpoint that the run's full fine-tune writes; None where it has none."""
    return store.local(FOLDER) if spec.match is not None and spec.match.adapter == "full" else None
