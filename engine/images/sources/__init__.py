"""Where real images come from: one module a source, one interface for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.images.sources import digits, folder, hub_source, medmnist, mnist, parquet, usps, webdataset
from engine.images.sources.source import ImageSource, Place, Ref, Rejected
from engine.spec.recipe import ImagesSpec, Source

OPENERS: dict[str, Callable[..., Mapping[str, ImageSource]]] = {
    "digits": digits.open_sets,
    "mnist": mnist.open_sets,
    "usps": usps.open_sets,
    "medmnist": medmnist.open_sets,
    "folder": folder.open_sets,
    "webdataset": webdataset.open_sets,
    "parquet": parquet.open_sets,
    "hub": hub_source.open_sets,
}

__all__ = ["ImageSource", "Place", "Ref", "Rejected", "open_sets"]


def open_sets(source: Source, images: ImagesSpec, *, download: bool = False) -> Mapping[str, ImageSource]:
    """The sets of a source: "" is the main one, "test" the given test set where there is one.

    `download` lets a Hub data set be fetched; without it only what lies on this machine is used. Raises DataError or
    ConfigError for faults of the place as a whole.
    """
    opener: Callable[..., Any] = OPENERS[source.kind]
    sets: Mapping[str, ImageSource] = opener(source, images, download=download)
    return sets
