"""Other labelled sets: their classes mapped to the run's, their images streamed, and what a classifier gets right on
them."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError, DataError, MimeoError
from engine.images.decode import BadImage, decode, fit
from engine.images.inspection import pixels_digest
from engine.images.listing import Candidate, Listing
from engine.images.sources import ImageSource
from engine.spec import RunSpec
from engine.spec.evaluation import SetSpec
from engine.spec.recipe import ImagesSpec
from engine.training.judge_data import shrink

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
CHUNK = 256


class Classifier(Protocol):
    """A trained classifier."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its outputs, in order."""

    @property
    def size(self) -> int:
        """The side of the images that it takes."""

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, C) of pixels (N, size, size, 3) uint8."""

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, D): what the last linear layer reads."""


def sized(pixels: Pixels, side: int) -> Pixels:
    """Images (N, S, S, 3) at `side`: larger ones averaged down, smaller ones enlarged by bicubic interpolation."""
    if pixels.shape[1] >= side:
        return shrink(pixels, side)
    import torch
    from torch.nn import functional

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    large = functional.interpolate(images, (side, side), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def class_map(theirs: Sequence[str], ours: Sequence[str], mapping: Mapping[str, str] | None, where: str) -> Ints:
    """(len(theirs),) class numbers of the run for the classes of another set, -1 for those that are left out.

    Without a mapping equal names are equal classes. Raises ConfigError about `where` for a name that neither side
    knows, and where no class is left.
    """
    if mapping is None:
        known = {name: k for k, name in enumerate(ours)}
        found = np.array([known.get(name, -1) for name in theirs], np.int64)
    else:
        for name in mapping:
            if name not in theirs:
                raise ConfigError(where, f"{name!r} is no class of the set", _near(name, theirs))
        for name in mapping.values():
            if name not in ours:
                raise ConfigError(where, f"{name!r} is no class of the run", _near(name, ours))
        numbers = {name: list(ours).index(own) for name, own in mapping.items()}
        found = np.array([numbers.get(name, -1) for name in theirs], np.int64)
    if not (found >= 0).any():
        shown = ", ".join(theirs[:5])
        fix = "map their names to the run's under classes"
        raise ConfigError(where, f"none of the set's {len(theirs):,} classes ({shown}) is one of the run", fix)
    return found


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(list(known)[:10])}"


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Faults of a set's source name the set."""
    try:
        yield
    except MimeoError as error:
        own = error.where.startswith("evaluate.sets.")
        where = error.where if own else f"evaluate.sets.{name}.{error.where}"
        raise type(error)(where, error.what, error.fix) from None


def _listing(asked: SetSpec, spec: RunSpec, *, download: bool) -> Listing:
    return Listing(spec.model_copy(update={"source": asked.source}), download=download)


def precheck(name: str, asked: SetSpec, spec: RunSpec, class_names: Sequence[str] | None) -> None:
    """Find a missing place, a broken file or a wrong mapping in about a second; `class_names` are the run's where
    known.

    Raises ConfigError or DataError.
    """
    from engine.images.sources import hub_source

    with _about(name):
        try:
            listing = _listing(asked, spec, download=False)
        except hub_source.NotCached as absent:
            absent.check_reachable()
            return
        for source in listing.sets.values():
            source.check()
        theirs = listing.sets[""].class_names
        if theirs is not None and class_names is not None:
            class_map(theirs, class_names, asked.classes, f"evaluate.sets.{name}.classes")


@dataclass(frozen=True)
class OtherSet:
    """A set that was listed: `labels[i]` is the run's class of `candidates[i]`; `left_out` counts unmapped classes'
    images.

    `present`: the run's classes that the set has; `bad`: entries that are no images, known without decoding.
    """

    name: str
    source: ImageSource
    images: ImagesSpec
    candidates: list[Candidate] = field(repr=False)
    labels: Ints = field(repr=False)
    present: Ints
    left_out: dict[str, int]
    bad: int
    border: int = 0


def open_set(name: str, asked: SetSpec, spec: RunSpec, class_names: Sequence[str]) -> OtherSet:
    """List a set: the given test set where the source has one, else all of it, by key.

    Raises ConfigError or DataError, with the set's name, where it cannot be read, maps to nothing or holds no image.
    """
    with _about(name):
        listing = _listing(asked, spec, download=True)
        part = "test" if "test" in listing.sets else ""
        candidates = sorted(
            (entry for group in listing.groups() for entry in group if entry.set == part), key=lambda entry: entry.key
        )
        theirs, numbers = listing.labels.classes()
        if not candidates:
            raise DataError("source", "holds no labelled image", "check the path")
        mapped = class_map(theirs, class_names, asked.classes, f"evaluate.sets.{name}.classes")
        own = numbers[np.array([entry.code for entry in candidates], np.int64)]
        labels = mapped[own]
        unmapped = Counter(theirs[k] for k in own[labels < 0].tolist())
        kept = np.flatnonzero(labels >= 0)
        if not len(kept):
            raise DataError("source", "holds no image of a class of the run", "check classes")
        return OtherSet(
            name=name,
            source=listing.sets[part],
            images=spec.images,
            candidates=[candidates[i] for i in kept.tolist()],
            labels=labels[kept],
            present=np.unique(labels[kept]),
            left_out=dict(sorted(unmapped.items())),
            bad=sum(entry.set == part for entry in listing.bad),
            border=asked.border,
        )


@dataclass
class Read:
    """What reading found: images read, undecodable ones, and those left out because the run trained on the same
    pixels."""

    images: int = 0
    bad: int = 0
    trained_on: int = 0
    digest: str = ""


def stream(other: OtherSet, trained_on: frozenset[str], told: Read) -> Iterator[tuple[Pixels, Ints]]:
    """Chunks of pixels (n, size, size, 3) uint8 at the run's size and labels (n,), in order; `told` is filled on the
    way.

    `trained_on`: digests of the training images' pixels. Raises DataError where no image is left, or where more than
    images.max_bad_fraction is bad.
    """
    digest = hashlib.sha256()
    for first in range(0, len(other.candidates), CHUNK):
        chosen = other.candidates[first : first + CHUNK]
        places = [c.place._replace(uri=c.place.uri.removeprefix(f"{c.set}:")) if c.set else c.place for c in chosen]
        found: dict[int, Pixels] = {}
        for position, data in other.source.read(places):
            image = _decoded(data, other.images)
            if image is None or min(image.shape[:2]) <= 2 * other.border:
                told.bad += 1
            elif pixels_digest(image) in trained_on:
                told.trained_on += 1
            else:
                cut = slice(other.border, -other.border or None)
                found[position] = fit(image[cut, cut], other.images)
        if found:
            order = sorted(found)
            pixels, labels = np.stack([found[i] for i in order]), other.labels[first + np.array(order)]
            digest.update(pixels.data)
            digest.update(labels.tobytes())
            told.images += len(order)
            yield pixels, labels
    told.digest = digest.hexdigest()
    where = f"evaluate.sets.{other.name}"
    if told.bad > other.images.max_bad_fraction * len(other.candidates):
        raise DataError(where, f"{told.bad:,} of {len(other.candidates):,} images are bad", "check the files")
    if not told.images:
        raise DataError(where, "holds no image that the run has not trained on", "choose another set")


def _decoded(data: bytes | BadImage, images: ImagesSpec) -> Pixels | None:
    if isinstance(data, BadImage):
        return None
    try:
        return decode(data, images).pixels
    except BadImage:
        return None


def right(classifier: Classifier, pixels: Pixels, labels: Ints, among: Ints | None = None) -> NDArray[np.bool_]:
    """(N,) whether the most probable class is the true one; `among`: the only classes that may be chosen."""
    probabilities = classifier.probabilities(sized(pixels, classifier.size))
    if among is None:
        return np.asarray(probabilities.argmax(1) == labels)
    return np.asarray(among[probabilities[:, among].argmax(1)] == labels)
