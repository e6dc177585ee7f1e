"""Trained classifiers on storage: weights as safetensors beside a small JSON, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from engine.errors import DataError
from engine.spec.classifier import TrainSpec
from engine.storage import documents
from engine.storage.store import Store
from engine.training.classifier import classifier_models
from engine.training.classifier.augment import centred, normalised
from engine.training.trainingresults import ClassifierFacts

FOLDER = "classifiers"
FACTS = "classifier.json"
BATCH = 256
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Classifier:
    """A trained model with all that its use needs; `facts` is its JSON (`ClassifierFacts`), empty in
    training."""

    model: nn.Module
    class_names: tuple[str, ...]
    size: int
    crop_pct: float
    device: torch.device
    facts: Mapping[str, object]

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, C) float32, rows summing to 1, of (N, H, H, 3) uint8 sRGB pixels of any side; they are resized as at the
        test."""
        return self._over(pixels, lambda images: self.model(images).float().softmax(1), len(self.class_names))

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, D) float32: what the last linear layer sees."""
        return self._over(pixels, lambda images: classifier_models.features(self.model, images).float(), 0)

    @torch.inference_mode()
    def _over(self, pixels: Pixels, compute: Any, width: int) -> NDArray[np.float32]:
        training = self.model.training
        self.model.eval()
        out: list[Tensor] = []
        for first in range(0, len(pixels), BATCH):
            images = torch.from_numpy(np.ascontiguousarray(pixels[first : first + BATCH])).permute(0, 3, 1, 2)
            images = centred(images.to(self.device), self.size, self.crop_pct)
            out.append(compute(normalised(images)).cpu())
        self.model.train(training)
        return torch.cat(out).numpy() if out else np.empty((0, width), np.float32)


def save(store: Store, name: str, which: str, model: nn.Module, facts: ClassifierFacts) -> None:
    """Write `classifiers/NAME/WHICH.safetensors` and the facts beside (`which`: last or best), over what is there."""
    from safetensors.torch import save as encode

    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    store.replace(f"{FOLDER}/{name}/{which}.safetensors", encode(state))
    store.replace(f"{FOLDER}/{name}/{FACTS}", (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def names(store: Store) -> list[str]:
    """Every classifier of an output that is finished, by name."""
    found = (entry.name.split("/") for entry in store.list(f"{FOLDER}/"))
    made = sorted({parts[1] for parts in found if len(parts) == 3 and parts[2] == FACTS})
    return [name for name in made if facts(store, name).get("selected")]


def load(store: Store, name: str, which: str | None = None, device: torch.device | str = "cpu") -> Classifier:
    """A classifier of `names`; `which` is last or best, by default the one that was chosen for the test.

    Raises DataError where it is not there, not finished, or where its weights are not this model's.
    """
    known = facts(store, name)
    which = which or known.get("selected")
    path = f"{FOLDER}/{name}/{which}.safetensors"
    if not which or not store.exists(path):
        raise DataError(f"{store.url}/{FOLDER}/{name}", "is not a finished classifier", "run mimeo train again")
    try:
        spec = TrainSpec.model_validate(known["train"] | {"weights": None})
    except ValidationError:
        where = f"{store.url}/{FOLDER}/{name}/{FACTS}"
        raise DataError(where, "holds no settings of a classifier", "run mimeo train again") from None
    model = classifier_models.build(spec, known["size"], len(known["class_names"]))
    read_weights(model, store, path)
    place = torch.device(device)
    model = model.to(place).to(memory_format=torch.channels_last).eval()
    return Classifier(model, tuple(known["class_names"]), known["size"], spec.crop_pct, place, known)


def read_weights(model: nn.Module, store: Store, path: str) -> None:
    """Fill a model with stored weights, all of them or none (DataError)."""
    from safetensors import SafetensorError
    from safetensors.torch import load as decode

    try:
        model.load_state_dict(decode(store.read(path)))
    except (SafetensorError, RuntimeError):
        raise DataError(
            f"{store.url}/{path}", "is not whole, or of another model", "remove it and run mimeo train again"
        ) from None


def facts(store: Store, name: str) -> ClassifierFacts:
    """What is known of a saved classifier: arm, seed, settings, what it was made from; DataError where that is
    missing."""
    where = f"{FOLDER}/{name}/{FACTS}"
    found = documents.find(store, where, ClassifierFacts, "run mimeo train again")
    if found is None:
        raise DataError(f"{store.url}/{where}", "is missing", "run mimeo train again")
    return found
