"""The condition stages: captions, CLIP features and class statistics of the training split, as Ray Data jobs that end
in Parquet."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.cluster.progress import Reporter
from engine.conditions import captions, featuremodel, localmodel, row_pool, stored, tokens
from engine.conditions.captions import STRATEGIES
from engine.conditions.featuremodel import FeatureModel
from engine.conditions.features import BATCH, FeatureExtractor
from engine.conditions.stored import CAPTIONS, CLASSES, FEATURES, FITS, as_lists, as_matrix
from engine.conditions.table import class_statistics, publish_fits
from engine.errors import DataError
from engine.images.catalog import Catalog
from engine.images.image_reader import Reader
from engine.spec import RunSpec, identity
from engine.storage.store import Store

if TYPE_CHECKING:
    from engine.diffusion.checkpoint import Checkpoint

VERSION = 1  # raised when captions or features of the same inputs change
READ = 64 * 1024 * 1024


def precheck(spec: RunSpec, checkpoint: Path | None = None, widths: Collection[int] | None = None) -> None:
    """Raise ConfigError, in one line and before Ray or a GPU is used, when the recipe's conditions cannot be computed.

    `checkpoint` is the generator's directory, None while it is not trained yet (then its own CLIP is not checked);
    `widths` are those of image features that fit it.
    """
    captions.precheck(spec.conditions.caption)
    if checkpoint is not None or spec.conditions.features.backend != "checkpoint":
        featuremodel.check_use(spec, _feature_model(spec, checkpoint), widths)


def caption(
    spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter, run: row_pool.Run = row_pool.run
) -> None:
    """Write conditions/captions.parquet: key, label, caption of each training image, in key order; nothing to do when
    it is there.

    `run` does the work, by default the actor pool of a session (needed unless the captions look at no image). DataError
    when it is there from other inputs and was generated from, and where a class has too few images for the recipe's
    visual token.
    """
    section = spec.conditions.caption
    strategy = STRATEGIES[section.kind]
    rows = _train(catalog)
    tokens.check(spec.generate.visual_token, rows["label"].to_numpy(), catalog.class_names)
    made_from = {
        "version": VERSION,
        "captions": {k: v for k, v in identity(spec)["conditions"]["caption"].items() if k != "path"},
        "images": spec.images.model_dump(mode="json") if strategy.needs_images else None,
        "catalog": catalog.digest,
        "model": localmodel.digest(strategy.files(section)),
    }
    if stored.is_current(store, (CAPTIONS,), made_from):
        return
    facts: Any = [""] * len(rows)
    if strategy.needs_images:
        facts = _observed(spec, str(made_from["model"]), rows, progress, run)
    fitted = strategy.fit(facts)
    table = pa.table({"key": rows["key"], "label": rows["label"], "caption": strategy.say(facts, fitted)})
    stored.publish(store, CAPTIONS, table, made_from, fitted=fitted, class_names=list(catalog.class_names))


def features(
    spec: RunSpec,
    catalog: Catalog,
    checkpoint: Path | Checkpoint,
    store: Store,
    progress: Reporter,
    run: row_pool.Run = row_pool.run,
) -> None:
    """Write conditions/features.parquet (key, feature) in key order, then conditions/classes.parquet; nothing to do
    when done.

    conditions/fits.parquet lies beside where the recipe's visual token is drawn from what is fitted to each class.

    Inside a session. DataError names the image whose feature is not finite, or tells of files from other inputs that
    were generated from. A checkpoint without an image encoder gives features of width 0 when the run uses none.
    """
    model = _feature_model(spec, checkpoint if isinstance(checkpoint, Path) else checkpoint.path)
    rows = _train(catalog)
    made_from = {
        "version": VERSION,
        "loader": model.loader,
        "name": spec.conditions.features.model,
        "images": spec.images.model_dump(mode="json"),
        "catalog": catalog.digest,
        "model": model.digest,
    }
    if not stored.is_current(store, (FEATURES, FITS, CLASSES), made_from):
        values = np.empty((len(rows), 0), np.float32)
        if model.dim:
            place = model if isinstance(checkpoint, Path) else checkpoint
            values = _computed(spec, place, str(made_from["model"]), rows, progress, run)
        stored.publish(store, FEATURES, pa.table({"key": rows["key"], "feature": as_lists(values)}), made_from)
    if not store.exists(CLASSES):
        values, labels = as_matrix(stored.read(store, FEATURES)[0]["feature"]), rows["label"].to_numpy()
        if spec.generate.visual_token in tokens.FITTED:
            publish_fits(store, spec, values, labels, made_from)
        stored.publish(store, CLASSES, class_statistics(values, labels, catalog.class_names), made_from)


def _train(catalog: Catalog) -> pa.Table:
    rows = catalog.split("train")
    if not len(rows):
        raise DataError("training split", "holds no image", "raise split.train")
    return rows


def _feature_model(spec: RunSpec, checkpoint: Path | None) -> FeatureModel:
    return featuremodel.resolve(spec.conditions.features, checkpoint, needed=featuremodel.needed(spec))


def _observed(spec: RunSpec, digest: str, rows: pa.Table, progress: Reporter, run: row_pool.Run) -> list[Any]:
    where = row_pool.device(spec.resources, STRATEGIES[spec.conditions.caption.kind].needs_model)
    with progress.task("captions", len(rows)) as task:
        return run(partial(caption_work, spec, where, digest), rows, spec.resources, where, task)["fact"].to_pylist()


def _computed(
    spec: RunSpec, model: FeatureModel | Checkpoint, digest: str, rows: pa.Table, progress: Reporter, run: row_pool.Run
) -> NDArray[np.float32]:
    where = row_pool.device(spec.resources, needs_model=True)
    with progress.task("features", len(rows)) as task:
        table = run(partial(feature_work, spec, model, where, digest), rows, spec.resources, where, task)
    return as_matrix(table["feature"])


def caption_work(spec: RunSpec, device: str, digest: str = "") -> row_pool.Work:
    """What an actor does for captions: catalog rows in, one `fact` a row out; StorageError where its model has another
    digest."""
    section, strategy = spec.conditions.caption, STRATEGIES[spec.conditions.caption.kind]
    with localmodel.unchanged(strategy.files(section), digest):
        observe = strategy.observer(section, device)
    reader = Reader(spec)

    def work(rows: pa.Table) -> pa.Table:
        facts = [fact for part in _parts(rows, spec) for fact in observe(reader.pixels(part))]
        return pa.table({"fact": pa.array(facts)})

    return work


def feature_work(spec: RunSpec, model: FeatureModel | Checkpoint, device: str, digest: str = "") -> row_pool.Work:
    """What an actor does for features: catalog rows in, one `feature` (D) a row out; DataError names one that is not
    finite.

    A checkpoint's own model is looked for on the actor's node; StorageError where it has another digest.
    """
    found = model if isinstance(model, FeatureModel) else _feature_model(spec, model.path)
    extractor = FeatureExtractor(found, device, digest)
    reader = Reader(spec)

    def work(rows: pa.Table) -> pa.Table:
        values = np.concatenate([extractor.images(reader.pixels(part)) for part in _parts(rows, spec)])
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            key = rows["key"][int(np.argmin(finite))].as_py()
            raise DataError(key, "its image feature is not finite", "check the image and the feature model")
        return pa.table({"feature": as_lists(values)})

    return work


def _parts(rows: pa.Table, spec: RunSpec) -> list[pa.Table]:
    """Rows in whole batches of at most READ bytes of pixels, so that a chunk of large images never lies in memory
    whole."""
    step = BATCH * max(1, READ // (BATCH * 3 * spec.images.size**2))
    return [rows.slice(first, step) for first in range(0, len(rows), step)]
