"""Which classifiers are evaluated: those that the output holds, or judges trained for it, one an arm and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import DataError
from engine.evaluation.ood import Classifier, Pixels
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec
from engine.storage.store import Store
from engine.training import judge_fit, judge_training
from engine.training.judge_data import resolution
from engine.training.judge_fit import Arm
from engine.training.setup import place, run

if TYPE_CHECKING:
    import torch

    from engine.training.judge_model import Judge

FOLDER = output.EVALUATED_JUDGES


@dataclass(frozen=True)
class Named:
    """A classifier to be evaluated: `name` in the store, the training set that it belongs to, and its seed."""

    name: str
    arm: str
    seed: int
    saved: bool


class JudgeClassifier:
    """A judge as a Classifier."""

    def __init__(self, model: Judge, class_names: tuple[str, ...], size: int, device: torch.device | str) -> None:
        self.class_names, self.size = class_names, size
        self._model, self._device = model.eval(), device

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, C) of pixels (N, size, size, 3) uint8."""
        return self._mapped(pixels, lambda images: self._model(images).softmax(1))

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, D): the last channels, averaged over the image."""
        return self._mapped(pixels, lambda images: self._model.features(images).mean(dim=(2, 3)))

    def _mapped(self, pixels: Pixels, function: Any) -> NDArray[np.float32]:
        import torch

        from engine.training.judge_model import EVALUATION_BATCH, normalise

        with torch.inference_mode():
            chunks = torch.from_numpy(np.ascontiguousarray(pixels)).split(EVALUATION_BATCH)
            out = [function(normalise(chunk.to(self._device))).float().cpu() for chunk in chunks]
        return np.asarray(torch.cat(out).numpy())


def judge_spec(spec: RunSpec, store: Store) -> JudgeSpec:
    """The judge section with what the evaluate section asks for instead, its multiples written out once there is a
    catalog."""
    asked = spec.evaluate
    assert asked is not None
    if spec.judge.multiples is None and store.exists(catalogs.DONE):
        spec = judge_training.filled(spec, catalogs.load(store).split("train").num_rows)
    update = {"arms": asked.arms, "seeds": asked.seeds}
    return spec.judge.model_copy(update={key: value for key, value in update.items() if value is not None})


def listed(spec: RunSpec, store: Store) -> list[Named]:
    """Saved classifiers where the output holds any, else the judges of the recipe, arm by arm."""
    from engine.training.classifier import saved

    names = saved.names(store)
    if names:
        facts = {name: saved.facts(store, name) for name in names}
        return [Named(name, facts[name]["arm"], facts[name]["seed"], True) for name in names]
    own = judge_spec(spec, store)
    return [
        Named(f"{arm.key}-{seed}", arm.key, seed, False) for arm in judge_fit.arms(own) for seed in range(own.seeds)
    ]


def judge_name(name: str) -> str:
    """Where a judge's weights lie in an output."""
    return f"{FOLDER}/{name}.safetensors"


def load(
    named: Named, spec: RunSpec, store: Store, class_names: tuple[str, ...], device: torch.device | str
) -> Classifier:
    """Open a classifier; raises DataError where it does not know the run's classes."""
    if named.saved:
        from engine.training.classifier import saved

        classifier = saved.load(store, named.name, device=device)
        if classifier.class_names != class_names:
            raise DataError(named.name, "was trained on other classes than this run's", "train it again")
        return classifier
    from safetensors.torch import load as read

    from engine.training.judge_model import Judge

    size = resolution(spec)
    model = Judge(size, len(class_names), spec.judge.width)
    model.load_state_dict(read(store.read(judge_name(named.name))))
    return JudgeClassifier(model.to(device), class_names, size, device)


def train(spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter, wanted: list[Named]) -> None:
    """Train the judges that are not on storage yet, as `mimeo judge` does, and keep their weights. Call inside a Ray
    session.

    Raises ConfigError where an arm asks for more synthetic images than there are.
    """
    import ray

    missing = [named for named in wanted if not named.saved and not store.exists(judge_name(named.name))]
    if not missing:
        return
    own = judge_spec(spec, store)
    arms = {arm.key: arm for arm in judge_fit.arms(own)}
    jobs = [(arms[named.arm], named.seed) for named in missing]
    multiple = max(arm.multiple for arm, _ in jobs)
    data = judge_training.images(spec, catalog, store, progress, multiple)
    board = Board.create()
    config: Config = {"jobs": jobs, "data": ray.put(data), "spec": own, "store": store, "board": board}
    with follow(board, progress):
        run(loop, config, name="evaluate", resources=judge_training.workers(spec.resources, len(jobs)))


class Config(TypedDict):
    """What the workers are sent; `data` is a reference to `judge_fit.Data`."""

    jobs: list[tuple[Arm, int]]
    data: Any
    spec: JudgeSpec
    store: Store
    board: Board


def loop(config: Config) -> None:
    """The worker: trains its share of the judges and publishes each one's weights."""
    import ray
    import torch

    here = place()
    torch.set_num_threads(1)  # as `mimeo judge`: the same weights on every machine
    data, store, board = ray.get(config["data"]), config["store"], config["board"]
    jobs = config["jobs"][here.rank :: here.world_size]
    name = "evaluate: judges" if here.world_size == 1 else f"evaluate: judges, worker {here.rank + 1}"
    for k, (arm, seed) in enumerate(jobs):
        if not store.exists(judge_name(f"{arm.key}-{seed}")):
            store.create(judge_name(f"{arm.key}-{seed}"), weights(arm, seed, config["spec"], data, here.device))
        board.update(name, k + 1, len(jobs), "judges")


def weights(arm: Arm, seed: int, spec: JudgeSpec, data: judge_fit.Data, device: torch.device | str) -> bytes:
    """Train one judge; its weights as safetensors."""
    from safetensors.torch import save

    model, _, _ = judge_fit.fit(arm, seed, spec, data, device)
    return save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
