"""`mimeo train`: train image classifiers on real, synthetic and mixed data and compare them in pairs."""

from __future__ import annotations

import sys
import time

from engine.cluster.terminal import Terminal
from engine.errors import ConfigError
from engine.run.stages import Run, generator
from engine.spec import RunSpec
from engine.storage.store import Store
from pipelines.context import load_recipe, open_run
from pipelines.options import Output, Recipe, Set, TimeLimit
from pipelines.verbs import STAGES, run_stages, upto

WIDTH = 120  # of tables in files


def check(spec: RunSpec, store: Store) -> None:
    """What the recipe's `train` section says, before anything is claimed, drawn or trained; imports timm."""
    from engine.training.classifier import classifier_models, training_sets

    assert spec.train is not None
    if "reconstructed" in spec.train.arms and spec.model.checkpoint is None and spec.pretrain.kind == "pixel":
        raise _no_vae("pretrain.space pixel makes a generator without one")
    training_sets.precheck(spec, spec.train, store.url)
    classifier_models.check(spec.train, spec.train.size or spec.images.size)


def stages_of(spec: RunSpec) -> tuple[str, ...]:
    """What has to be made first: the synthetic set where an arm draws it, the generator for its VAE, else the catalog
    alone."""
    assert spec.train is not None
    if spec.train.needs_synthetic:
        return upto("generate")
    return upto("pretrain") if "reconstructed" in spec.train.arms else upto("catalog")


def autoencoder(run: Run) -> tuple[str, str] | None:
    """The generator's directory (path or URL) and its digest, where an arm needs its VAE."""
    if run.spec.train is None or "reconstructed" not in run.spec.train.arms:
        return None
    from engine.diffusion import checkpoint

    model = checkpoint.inspect(generator(run), run.spec.images.size)
    if not any(name.startswith("vae/") for name in model.files):
        raise _no_vae(f"{model.place} has none")
    return model.place, model.digest


def _no_vae(what: str) -> ConfigError:
    return ConfigError("train.arms", f"reconstructed needs the generator's VAE, and {what}", "leave it out")


def main(recipe: Recipe, set_: Set = None, output: Output = None, time_limit: TimeLimit = None) -> None:
    """Train classifiers on real, synthetic and mixed data, the same steps for each, and compare them in pairs."""
    if load_recipe(recipe, set_).train is None:
        raise ConfigError(recipe, "has no train section", "add one, such as --set train.steps=1000")
    with open_run(recipe, set_, output, "train", check) as run:
        if not _run(run, time_limit):
            run.reporter.note("time limit reached; the same command goes on from here")


def _run(run: Run, time_limit: float | None) -> bool:
    """The stages before, where they are not done, and the training; False where the time was up."""
    names = stages_of(run.spec)
    if all(stage.done(run) for stage in STAGES if stage.name in names):
        return _train(run, time_limit)
    from engine.cluster.session import session
    from engine.images import catalog
    from engine.training.classifier.classifier_run import check as check_arms

    began = time.monotonic()
    with session(run.spec.resources, store=run.store):
        if not run_stages(run, names[:1], time_limit):
            return False
        check_arms(run.spec, catalog.load(run.store))
        if not run_stages(run, names[1:], _left(time_limit, began)):
            return False
        return _train(run, _left(time_limit, began))


def _left(limit: float | None, began: float) -> float | None:
    return None if limit is None else limit - (time.monotonic() - began)


def _train(run: Run, time_limit: float | None) -> bool:
    from engine.cluster.session import session
    from engine.evaluation import classifier_result as classifiers
    from engine.images import catalog
    from engine.training.classifier import classifier_run as training

    planned = training.plan(run.spec, run.store, catalog.load(run.store), autoencoder=autoencoder(run))
    pending = planned.pending(run.store)
    if pending:
        run.reporter.note(f"{len(pending)} of {len(planned.tasks)} classifiers to train")
        with session(run.spec.resources, store=run.store):
            if not training.train(planned, run.store, run.reporter, time_limit=time_limit):
                return False
    else:
        run.reporter.note(f"nothing to do: {run.store.url} holds all {len(planned.tasks)} classifiers")
    console = Terminal() if sys.stdout.isatty() else Terminal(width=WIDTH)
    console.print(classifiers.table(classifiers.summary(planned, run.store)))
    console.print(f"results: {run.store.url}/{classifiers.RESULT}", soft_wrap=True, highlight=False)
    return True


if __name__ == "__main__":
    from pipelines.cli import execute

    sys.exit(execute(["train", *sys.argv[1:]]))
