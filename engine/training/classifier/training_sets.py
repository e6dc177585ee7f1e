"""The synthetic images of a training: this run's own output and further ones, checked to be of the same kind and
united."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import ConfigError, DataError
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.shards import manifest
from engine.shards.manifest import Manifest
from engine.spec import RunSpec, digest, sample_key, spec_hash
from engine.spec.classifier import TrainSpec
from engine.storage.claim import SPEC, read_spec
from engine.storage.store import Store, open_store
from engine.training.classifier import ingest
from engine.training.judge_data import codec

FIX = "leave it out of train.synthetic"


@dataclass(frozen=True)
class Source:
    """A finished output: `planned` samples in its plan, of which `manifest` lists what there is."""

    store: Store
    manifest: Manifest
    planned: int

    @property
    def digest(self) -> str:
        """What its images are, as its seal says."""
        return digest(self.manifest.seal.to_json().decode())


def own(spec: RunSpec, store: Store) -> Source:
    """The run's own output; DataError where it is not finished, or holds another spec's samples."""
    found = manifest.load(store)
    if found.seal.facts.spec_hash != spec_hash(spec):
        raise DataError(store.url, "holds the samples of another spec", "use a new output, or the recipe that made it")
    return Source(store, found, found.seal.facts.count)


def precheck(spec: RunSpec, train: TrainSpec, url: str) -> None:
    """Refuse further outputs that cannot be: absent, this one, given twice, of another image size, or with the same
    samples."""
    seen, keys = {open_store(url).url}, {sample_key(spec): "this run"}
    for place in train.synthetic:
        store = open_store(place)
        if store.url in seen:
            raise ConfigError("train.synthetic", f"{place} is given twice, or is this run's own output", FIX)
        if not store.exists(SPEC):
            raise ConfigError("train.synthetic", f"{place} is not an output of mimeo", FIX)
        other = read_spec(store)
        if other.images.size != spec.images.size:
            raise DataError(place, f"has images of {other.images.size} px, this run of {spec.images.size} px", FIX)
        if codec(other) != codec(spec):
            told = [f"{c['format']}" + (f" {c['quality']}" if c["lossy"] else "") for c in (codec(other), codec(spec))]
            raise DataError(place, f"is encoded as {told[0]}, this run as {told[1]}", FIX)
        same = keys.setdefault(sample_key(other), place)
        if same != place:
            raise DataError(place, f"holds the same samples as {same}", "draw it with another seed")
        seen.add(store.url)


def further(train: TrainSpec, real: Catalog) -> list[Source]:
    """The outputs of `train.synthetic`; DataError for other classes, and for generators that have seen this run's test
    images."""
    held = real.table.filter(pc.is_in(real.table["split"], pa.array(["validation", "test"])))
    held_out = set(held["pixels_sha256"].to_pylist())
    found = []
    for place in train.synthetic:
        store = open_store(place)
        other = catalogs.load(store)
        check_classes(place, other.class_names, real.class_names)
        leaked = sum(value in held_out for value in other.split("train")["pixels_sha256"].to_pylist())
        if leaked:
            what = f"its generator was trained on {leaked:,} images of this run's validation or test split"
            raise DataError(place, what, "use the same seed and split for both, or leave it out")
        made = manifest.load(store)
        found.append(Source(store, made, made.seal.facts.count))
    return found


def check_classes(place: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse an output whose classes are not the real ones, in their order (DataError)."""
    if list(found) == list(wanted):
        return
    extra, missing = [n for n in found if n not in wanted], [n for n in wanted if n not in found]
    told = [f"{word} {name!r}" for word, names in (("has", extra), ("lacks", missing)) for name in names[:1]]
    raise DataError(place, f"its classes are not the real ones: {', '.join(told) or 'another order'}", FIX)


def requests(name: str, sources: Sequence[Source], wanted: int, names: tuple[str, ...]) -> list[ingest.Request]:
    """Requests for the first `wanted` planned samples of the union, output after output."""
    made, before = [], 0
    for source in sources:
        below = min(wanted - before, source.planned)
        if below <= 0:
            break
        rows = source.manifest.table
        chosen = [
            k for k, first in zip(rows["index"].to_pylist(), rows["first"].to_pylist(), strict=True) if first < below
        ]
        made.append(ingest.synthetic(name, source.store.url, chosen, below, names, before))
        before += source.planned
    return made
