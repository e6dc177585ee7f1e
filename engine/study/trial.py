"""One trial of a study in one process: train, condition, fine-tune, draw and judge as a run does, without starting
actors for it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from engine.cluster.board import Board, BoardReporter
from engine.cluster.progress import PlainReporter, Reporter
from engine.errors import OutputInUseError
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.output import CATALOG_DONE, MODEL, TRIALS
from engine.run import stages
from engine.run.stages import Run, Where
from engine.spec import RunSpec, digest, plain
from engine.statistics.nested import judge_seeds
from engine.storage.claim import claim
from engine.storage.lock import hold
from engine.storage.store import Store, address, open_store
from engine.study.judge_reading import Reading, read
from engine.study.studyresults import Copied
from engine.training.judge_data import Arrays, synthetic_images
from engine.training.judge_fit import Arm, Data

Readings = dict[str, list[Reading]]


@dataclass(frozen=True)
class Shared:
    """What all trials of a study have in common: its output, the real images, what the judges see of them, and what
    they are scored on."""

    url: str
    catalog: Catalog
    train: Arrays
    held: Arrays
    validation: Arrays | None = None
    board: Board | None = None

    def told(self, seed: int) -> Board | None:
        """The board under the name of a generator seed."""
        return None if self.board is None else self.board.under(f"generator {seed}:")


def generator_key(spec: RunSpec) -> str:
    """Names what decides the closed-set generator: arms with equal keys share it."""
    data = plain(spec)
    return digest([spec.seed, data["pretrain"], data["images"], data["conditions"]])[:12]


def train_generator(spec: RunSpec, shared: Shared, device: str, name: str = "generator") -> str | None:
    """Train the closed-set generator of a trial, or find it; returns the path or URL of its directory, None for a
    recipe with a checkpoint of its own.

    `name` tells apart generators of equal settings that see different images. Of trials that share one, the first
    trains it and the others wait.
    """
    if spec.model.checkpoint is not None:
        return None
    store = trial_store(shared, f"seed-{spec.seed}/{name}-{generator_key(spec)}")
    with _alone(store):
        stages.make(_run(spec, store, None, shared, device), stages.upto("pretrain"))
    return address(store, MODEL)


def run_trial(spec: RunSpec, name: str, generator: str | None, shared: Shared, device: str) -> tuple[Readings, Copied]:
    """Everything after the generator's training, in the trial's own output; what its judges read by training set, and
    its copies."""
    store = synthetic_set(spec, name, generator, shared, device)
    with quiet().task("judge: images", spec.generate.count) as task:
        synthetic = synthetic_images(spec, store, spec.generate.count, task)
    return _judge(spec, synthetic, shared, device), copied(synthetic, shared, device)


def copied(synthetic: Arrays, shared: Shared, device: str) -> Copied:
    """Copy share and membership AUC of a set in pixels, held-out images being those that classifiers are scored on."""
    from engine.evaluation.copies import measure
    from engine.evaluation.nearest import PixelSpace, is_grey

    sets = synthetic.pixels, shared.train.pixels, shared.held.pixels
    space = PixelSpace(all(is_grey(pixels) for pixels in sets))
    found = measure(space, *sets, [len(synthetic.labels)], device).prefix(0, len(synthetic.labels))
    return {"share": found["share"], "auc": found["auc"]}


def synthetic_set(spec: RunSpec, name: str, generator: str | None, shared: Shared, device: str) -> Store:
    """Condition, fine-tune and draw in the trial's own output, which is returned.

    What is there already is kept, so a trial that was cut short goes on; trials that share an output wait for each
    other.
    """
    return _made("generate", spec, name, generator, shared, device)


def fine_tuned(spec: RunSpec, name: str, generator: str | None, shared: Shared, device: str) -> Store:
    """All that comes before drawing: captions, features and, where the recipe has one, the fine-tune in `match/`."""
    return _made("match", spec, name, generator, shared, device)


def _made(last: str, spec: RunSpec, name: str, generator: str | None, shared: Shared, device: str) -> Store:
    """The trial's own output, with a run's stages up to the last one."""
    import torch

    torch.set_num_threads(spec.resources.threads)
    store = trial_store(shared, f"seed-{spec.seed}/{name}")
    with _alone(store):
        claim(store, spec)
        stages.make(_run(spec, store, generator, shared, device), stages.upto(last))
    return store


def _run(spec: RunSpec, store: Store, generator: str | None, shared: Shared, device: str) -> Run:
    """A run in this process, of the study's catalog."""
    if not store.exists(CATALOG_DONE):
        catalogs.copy(shared.catalog, open_store(shared.url), store)
    return Run(spec, store, reporter(shared, spec.seed), Where(device), generator)


def judge_real(spec: RunSpec, seed: int, shared: Shared, device: str) -> list[Reading]:
    """What the judges of a generator seed read that are trained on the real images alone."""
    return _readings(spec, seed, Arm("real"), _data(shared, None), device)


def _judge(spec: RunSpec, synthetic: Arrays, shared: Shared, device: str) -> Readings:
    from engine.training.judge_fit import arms

    n = len(shared.train.labels)
    wanted = [arm for arm in arms(spec.judge) if arm.multiple and arm.multiple * n <= spec.generate.count]
    data = _data(shared, synthetic)
    return {arm.key: _readings(spec, spec.seed, arm, data, device) for arm in wanted}


def _readings(spec: RunSpec, generator: int, arm: Arm, data: Data, device: str) -> list[Reading]:
    from engine.training.judge_tuning import tuned

    own = tuned(arm, generator, spec.judge, data, device)
    return [read(arm, seed, own, data, device) for seed in judge_seeds(generator, spec.judge.seeds)]


def _data(shared: Shared, synthetic: Arrays | None) -> Data:
    n, classes = len(shared.train.labels), len(shared.catalog.class_names)
    return Data(shared.train, shared.held, synthetic, n, classes, validation=shared.validation)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold an output that trials share, waiting for the one that is at work there; a lock ends with its process."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(store, "mimeo study"))
                break
            except OutputInUseError:
                continue
        yield


def trial_store(shared: Shared, name: str) -> Store:
    """The output of a trial, or of what trials share."""
    return open_store(f"{shared.url}/{TRIALS}/{name}")


def reporter(shared: Shared, seed: int) -> Reporter:
    """Where the work of a generator seed is told: the board, if there is one."""
    board = shared.told(seed)
    return quiet() if board is None else BoardReporter(board)


def quiet() -> Reporter:
    """A reporter that nobody reads."""
    return PlainReporter(io.StringIO())
