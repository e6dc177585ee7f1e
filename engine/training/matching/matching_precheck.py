"""What can be said of a fine-tune without torch: whether the recipe can work, and where its result lies."""

from __future__ import annotations

from engine import output
from engine.errors import ConfigError
from engine.spec import RunSpec
from engine.storage.store import Store, address

FOLDER = output.MATCH_MODEL
MARKER = output.MATCH_MARKER
RESULTS = output.MATCH_RESULT
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


def lora_of(spec: RunSpec, store: Store) -> str | None:
    """The LoRA (path or URL) that the run draws with: its fine-tune's, or the recipe's; None where it has none."""
    if spec.match is not None and spec.match.adapter == "lora":
        return address(store, f"{FOLDER}/{WEIGHTS}")
    return spec.model.lora


def model_of(spec: RunSpec, store: Store) -> str | None:
    """The checkpoint (path or URL) that the run's full fine-tune writes; None where it has none."""
    return address(store, FOLDER) if spec.match is not None and spec.match.adapter == "full" else None
