"""Near-duplicates on one side of a split: which images are left out for a given test set, which stay together, and the
counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.images.listing import Bad
from engine.images.similar import Similar, find, prints_of
from engine.spec.recipe import SplitSpec

Ints = NDArray[np.int64]
SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("key", pa.string()),
        ("split", pa.string()),
        ("nearest", pa.string()),
        ("correlation", pa.float64()),
    ]
)
NO_SPLIT = "quarantined"


@dataclass(frozen=True)
class NearDuplicates:
    """How many images look like another (`images`, in `groups`), were left out as they look like a given test image
    (`set_aside`), and how many groups lie in more than one of train, validation and test (`across`)."""

    images: int
    groups: int
    set_aside: int
    across: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)

    def words(self) -> str:
        """The counts as a phrase."""
        text = f"near-duplicates: {self.images:,} images in {self.groups:,} groups"
        if self.set_aside:
            text += f", {self.set_aside:,} left out as they look like a test image"
        return text + (f", {self.across:,} groups across splits" if self.across else ", none across splits")


@dataclass(frozen=True)
class Alike:
    """The near-duplicates among all good images, and `group`, that of each image which is still there (None: they may
    be parted)."""

    similar: Similar
    keys: pa.ChunkedArray
    group: Ints | None

    def table(self, catalog: pa.Table) -> pa.Table:
        """A row for each image that looks like another, with its split in the catalog, and the one that it looks like
        most."""
        members = np.flatnonzero(self.similar.group >= 0)
        nearest, correlation = _nearest(self.similar, np.ones(len(self.similar.group), bool))
        keys = self.keys.take(pa.array(members))
        where = pc.index_in(keys, value_set=catalog["key"])
        columns = [
            pa.array(np.unique(self.similar.group[members], return_inverse=True)[1]),
            keys,
            pc.fill_null(catalog["split"].take(where), NO_SPLIT),
            self.keys.take(pa.array(nearest[members])),
            pa.array(correlation[members]),
        ]
        return pa.table(
            [pa.chunked_array(c) if isinstance(c, pa.Array) else c for c in columns], schema=SCHEMA
        ).sort_by([("group", "ascending"), ("key", "ascending")])


def counts(listed: pa.Table) -> NearDuplicates:
    """The counts of a table of `Alike.table`."""
    group, split = listed["group"].to_numpy(), np.array(listed["split"].to_pylist(), object)
    used = np.isin(split, ("train", "validation", "test"))
    sides = {(g, s) for g, s in zip(group[used].tolist(), split[used].tolist(), strict=True)}
    several = np.unique([g for g, _ in sides], return_counts=True)[1] > 1
    return NearDuplicates(len(group), len(np.unique(group)), int((split == NO_SPLIT).sum()), int(several.sum()))


def keep_apart(good: pa.Table, numbers: NDArray[np.int32], split: SplitSpec) -> tuple[pa.Table, Alike, list[Bad]]:
    """(images that stay, the near-duplicates, images left out) of a FACTS table of good images; `numbers` is the class
    of each code.

    An image that looks like one of a given test set is left out, directly or by way of others, unless they are allowed.
    """
    hashes = good["phash"].to_numpy()
    similar = find(hashes, prints_of(good["print"]), numbers[good["code"].to_numpy()])
    keys = good["key"]
    if split.near_duplicates == "allow":
        return good, Alike(similar, keys, None), []
    given = pc.equal(good["set"], "test").to_numpy(zero_copy_only=False)
    tested = np.unique(similar.group[given & (similar.group >= 0)])
    out = np.isin(similar.group, tested) & ~given
    nearest, correlation = _nearest(similar, given)
    left_out = [
        Bad(
            row["set"],
            row["key"],
            row["code"],
            "near_duplicate",
            f"looks like {other} (correlation {value:.3f})",
            other,
        )
        for row, other, value in zip(
            good.select(["set", "key", "code"]).filter(pa.array(out)).to_pylist(),
            keys.take(pa.array(nearest[out])).to_pylist(),
            correlation[out].tolist(),
            strict=True,
        )
    ]
    stays = ~out
    return good.filter(pa.array(stays)), Alike(similar, keys, similar.group[stays]), left_out


def _nearest(similar: Similar, preferred: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.float64]]:
    """For each image the one that it looks like most, among the preferred ones if any, and the correlation; itself
    where there is none."""
    one = np.concatenate([similar.first, similar.second])
    other = np.concatenate([similar.second, similar.first])
    value = np.concatenate([similar.correlation, similar.correlation])
    order = np.lexsort((-other, value, preferred[other]))  # the last one written stays
    nearest, correlation = np.arange(len(similar.group)), np.ones(len(similar.group))
    nearest[one[order]], correlation[one[order]] = other[order], value[order]
    return nearest, correlation
