"""Conditions of the training images as generation reads them: captions, prompts, image features and class
statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.conditions import prompts, stored, tokens
from engine.conditions.captions import Fitted
from engine.conditions.stored import CAPTIONS, CLASSES, FEATURES, FITS
from engine.conditions.tokens import Fits
from engine.errors import DataError
from engine.spec import RunSpec, canonical_json
from engine.storage.store import Store

Features = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Captions:
    """Captions of the N training images in key order; `labels` are indices into `class_names`, `fitted` what the
    captioner learnt."""

    keys: tuple[str, ...]
    labels: Labels
    captions: tuple[str, ...]
    class_names: tuple[str, ...]
    fitted: Fitted

    def prompts(self, template: str) -> tuple[str, ...]:
        """The N prompts of a template such as "photo of {class}, {caption}"."""
        return prompts.fill_all(template, self.class_names, self.labels.tolist(), self.captions)


@dataclass(frozen=True)
class Conditions:
    """Everything that a sample can be conditioned on; rows are the N training images in key order.

    `features` (N,D) are image features, of length 1 under `conditions.features.normalise`, else as the model gives them
    (D is 0 where the run uses none); `class_means` (K,D) has NaN in the rows of classes without training images.
    `class_numbers` (K,) are the generator's numbers of the classes, None where it reads text. `fits` are there where
    tokens are drawn from them.
    """

    keys: tuple[str, ...]
    labels: Labels
    captions: tuple[str, ...]
    prompts: tuple[str, ...]
    features: Features
    class_means: Features
    class_names: tuple[str, ...]
    class_numbers: tuple[int, ...] | None = None
    fits: Fits | None = None

    def class_number(self, label: int) -> int:
        """What a generator is told for a class."""
        return label if self.class_numbers is None else self.class_numbers[label]

    def digest(self) -> str:
        """SHA-256 (hex) over keys, labels, prompts, features, class means and fits."""
        found = hashlib.sha256(canonical_json([self.keys, self.prompts, self.class_names]).encode())
        for values in (self.labels, self.features, self.class_means):
            found.update(f"{values.dtype.str}{values.shape}".encode())
            found.update(np.ascontiguousarray(values).data)
        if self.fits is not None:
            found.update(canonical_json([self.fits.shrinkage.tolist(), self.fits.bandwidth]).encode())
            found.update(np.ascontiguousarray(self.fits.root).data)
        return found.hexdigest()

    def class_mean(self, label: int) -> Features:
        """The mean feature (D) of a class; DataError for a class without training images."""
        self._members(label)
        return self.class_means[label]

    def class_gaussian(self, label: int, seed: int) -> Features:
        """A draw (D) from the Gaussian with the class's mean and shrunken covariance; the same for a seed.

        DataError for a class without training images, and without fits.
        """
        return tokens.gaussian(self.features[self._members(label)], self._fitted(), label, seed)

    def prior(self, row: int, seed: int) -> Features:
        """A draw (D) from the prior of the class of a training image, out of the kernel around it; DataError without
        fits."""
        label = int(self.labels[row])
        return tokens.around(self.features[self._members(label)], self.features[row], self._fitted(), label, seed)

    def between(self, row: int, other: int, seed: int) -> Features:
        """A vector (D) between the features of two training images, at the seed's weight."""
        return tokens.between(self.features[row], self.features[other], seed)

    def _fitted(self) -> Fits:
        if self.fits is None:
            raise DataError(FITS, "is absent", "remove conditions/ and run `mimeo condition` again")
        return self.fits

    def _members(self, label: int) -> NDArray[np.int64]:
        rows = np.flatnonzero(self.labels == label)
        if not len(rows):
            raise DataError(
                self.class_names[label], "has no training image", "raise split.train or leave the class out"
            )
        return rows


def load_captions(store: Store) -> Captions:
    """What the caption stage has written; DataError when it is absent or broken, or captions are missing in it."""
    table, about = stored.read(store, CAPTIONS)
    again = "remove conditions/ and run again"
    for name in ("key", "label", "caption"):
        missing = table[name].null_count if name in table.column_names else len(table)
        if missing or not len(table):
            raise DataError(CAPTIONS, f"has no {name} for {missing:,} of {len(table):,} images", again)
    if not {"class_names", "fitted"} <= about.keys():
        raise DataError(CAPTIONS, "does not say what it was made from", again)
    return Captions(
        keys=tuple(table["key"].to_pylist()),
        labels=table["label"].to_numpy().astype(np.int32),
        captions=tuple(table["caption"].to_pylist()),
        class_names=tuple(about["class_names"]),
        fitted=about["fitted"],
    )


def load(store: Store, spec: RunSpec) -> Conditions:
    """What the condition stages have written, with the recipe's prompts; DataError when files are absent or do not
    belong together."""
    captions = load_captions(store)
    table, _ = stored.read(store, FEATURES)
    classes, _ = stored.read(store, CLASSES)
    if tuple(table["key"].to_pylist()) != captions.keys or tuple(classes["name"].to_pylist()) != captions.class_names:
        what = f"belongs to other images or classes than {CAPTIONS} ({len(table):,} and {len(captions.keys):,} images)"
        raise DataError(FEATURES, what, "remove conditions/ and run again")
    features = stored.as_matrix(table["feature"])
    if spec.conditions.features.normalise:
        features = unit(features)
        classes = class_statistics(features, captions.labels, captions.class_names)
    missing = np.full(features.shape[1], np.nan, np.float32)
    means = [missing if mean is None else np.asarray(mean, np.float32) for mean in classes["mean"].to_pylist()]
    return Conditions(
        keys=captions.keys,
        labels=captions.labels,
        captions=captions.captions,
        prompts=captions.prompts(spec.conditions.prompt),
        features=features,
        class_means=np.stack(means),
        class_names=captions.class_names,
        fits=_fits(store) if spec.generate.visual_token in tokens.FITTED else None,
    )


def publish_fits(
    store: Store, spec: RunSpec, values: Features, labels: Labels, made_from: Mapping[str, object]
) -> None:
    """Fit the features (N,D) as the recipe draws from them, and store what is found: D rows of `root`, the rest
    beside."""
    read = unit(values) if spec.conditions.features.normalise else values
    fits = tokens.fit(read, labels, int(labels.max()) + 1)
    table = pa.table({"root": stored.as_lists(fits.root)})
    stored.publish(store, FITS, table, made_from, shrinkage=fits.shrinkage.tolist(), bandwidth=fits.bandwidth)


def _fits(store: Store) -> Fits | None:
    """The stored fits, None where there are none yet; DataError where the file does not say them."""
    if not store.exists(FITS):
        return None
    table, about = stored.read(store, FITS)
    if "root" not in table.column_names or not {"shrinkage", "bandwidth"} <= about.keys():
        raise DataError(FITS, "does not hold what is fitted", "remove conditions/ and run again")
    return Fits(stored.as_matrix(table["root"]), np.array(about["shrinkage"], np.float64), float(about["bandwidth"]))


def copy(source: Store, target: Store, keys: Sequence[str]) -> None:
    """Store in another output the captions and features of these training images; class statistics stay those of
    all."""
    wanted = pa.array(sorted(keys), pa.string())
    for name in (CAPTIONS, FEATURES):
        table, about = stored.read(source, name)
        made_from = {"restricted": keys_digest(keys), "of": about.pop("made_from")}
        if not target.exists(name):
            stored.publish(target, name, table.filter(pc.is_in(table["key"], value_set=wanted)), made_from, **about)
    for name in (FITS, CLASSES):
        if source.exists(name) and not target.exists(name):
            table, about = stored.read(source, name)
            stored.publish(target, name, table, about.pop("made_from"), **about)


def keys_digest(keys: Sequence[str]) -> str:
    """SHA-256 (hex) of a set of keys."""
    return hashlib.sha256(canonical_json(sorted(keys)).encode()).hexdigest()


def unit(features: Features) -> Features:
    """Features (N,D), each divided by its length; a zero one stays zero."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def class_statistics(values: NDArray[np.float32], labels: NDArray[np.int32], names: Sequence[str]) -> pa.Table:
    """One row a class: label, name, count, feature mean (D) and sample standard deviation (D; zeros for a single
    image).

    A class without images has null for both.
    """
    means, deviations, counts = [], [], []
    for label in range(len(names)):
        own = values[labels == label].astype(np.float64)
        counts.append(len(own))
        means.append(own.mean(axis=0).astype(np.float32) if len(own) else None)
        spread = own.std(axis=0, ddof=1) if len(own) > 1 else np.zeros(values.shape[1])
        deviations.append(spread.astype(np.float32) if len(own) else None)
    lists = pa.list_(pa.float32())
    return pa.table(
        {
            "label": pa.array(range(len(names)), pa.int32()),
            "name": list(names),
            "count": pa.array(counts, pa.int64()),
            "mean": pa.array(means, lists),
            "std": pa.array(deviations, lists),
        }
    )
