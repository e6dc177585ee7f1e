"""All candidate images of a run, as a stream: sets joined, labels coded, the limit applied."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from engine.errors import ClusterError, ConfigError, DataError
from engine.images.labels import Labels, near_match, same_but_spelling
from engine.images.sources import Place, Ref, Rejected, open_sets
from engine.images.splits import allocate, apportion, counts, refuse_empty_test, require_all
from engine.spec import RunSpec
from engine.spec.recipe import SplitSpec

UNLABELLED = -1
REMOTE_S = 5.0  # the longest that entries of an object store are counted before Ray starts
MOST = 2**63
MEMORY = 1_500  # bytes of the driver's memory that an image of the catalog takes at most
QUICK = 20_000  # entries that are listed before Ray starts: half a second of files, one of tar members


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image to inspect: `set` is "" or "test", `code` its label as `Labels` codes it."""

    set: str
    key: str
    code: int
    place: Place


@dataclass(frozen=True, slots=True)
class Bad:
    """A real image that is not used, and why; `duplicate_of` is the key of the image that it repeats."""

    set: str
    key: str
    code: int
    reason: str
    detail: str
    duplicate_of: str = ""


class Listing:
    """Streams candidates; what is refused without decoding gathers in `bad`.

    Keys and URIs of a given test set begin with "test:", which no other name does. With `source.limit`, the main set
    and the test set are each cut to that many entries before any image is opened: classes keep their shares (every
    class keeps one at least), and in a class those entries stay whose key has the smallest hash, whatever the seed and
    the order on the disk.
    """

    def __init__(self, spec: RunSpec, *, download: bool = False) -> None:
        self.sets = open_sets(spec.source, spec.images, download=download)
        self.chosen: tuple[str, ...] | None = getattr(spec.source, "class_names", None)
        self.labels = Labels(self.sets[""].class_names, chosen=self.chosen is not None)
        self.bad: list[Bad] = []
        self._left_out: set[tuple[str, int | str]] = set()  # labels that are known to be no class
        self._limit: int | None = getattr(spec.source, "limit", None)
        self._remote = "://" in getattr(spec.source, "path", "")

    @property
    def skipped(self) -> Counter[str]:
        """What the last scans passed over, as no image by its name or kind, counted."""
        return sum((Counter(source.skipped) for source in self.sets.values()), Counter[str]())

    def groups(self) -> Iterator[list[Candidate]]:
        """Candidates in groups that are cheapest to read together; the main set first."""
        for name in self.sets:
            cut = self._cut(name) if self._limit is not None else None
            for group in self._coded(name):
                kept = [entry for entry in group if cut is None or _hash(entry.key) <= cut[entry.code]]
                self.bad += [entry for entry in kept if isinstance(entry, Bad)]
                candidates = [entry for entry in kept if isinstance(entry, Candidate)]
                if candidates:
                    yield candidates

    def check(self, split: SplitSpec) -> None:
        """Find structural faults in about a second: of the sources, and of a split that asks for more than there can
        be.

        Raises DataError or ConfigError. Counts only sets of up to QUICK entries, or such as the limit cuts; where the
        main set is larger, labels of the test set are checked as they are listed.
        """
        for source in self.sets.values():
            source.check()
        check_memory(sum(min(source.size() or 0, self._limit or MOST) for source in self.sets.values()))
        total, complete = self._count("")
        if "test" in self.sets and (complete or self.labels.declared is not None):
            self._count("test")
        if complete:
            classes = len(self.classes()[0])
        elif self._limit is not None:
            classes = len(self.labels.declared or ())
        else:
            return
        most = total if self._limit is None or (complete and total < self._limit) else self._limit
        counts(split, most, classes, given_test="test" in self.sets)

    def _count(self, name: str) -> tuple[int, bool]:
        """How many entries a set has, as far as a moment's listing tells, and whether these are all; labels are
        checked."""
        total, began = 0, time.monotonic()
        for group in self._coded(name):
            total += len(group)
            if total > QUICK or (self._remote and time.monotonic() - began > REMOTE_S):
                return total, False
        return total, True

    def classes(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Class names and the class number of each code, once the groups are through; DataError for fewer than two
        classes."""
        names, numbers = self.labels.classes()
        if len(names) < 2:
            what = f"holds one class only ({names[0]})" if names else "holds no labelled image"
            raise DataError("source", what, "a classifier needs two classes or more")
        return names, numbers

    def _coded(self, name: str) -> Iterator[Sequence[Candidate | Bad]]:
        for group in self.sets[name].scan():
            yield [self._entry(name, entry) for entry in group]

    def _entry(self, name: str, entry: Ref | Rejected) -> Candidate | Bad:
        prefix = f"{name}:" if name else ""
        key = prefix + entry.key
        code = UNLABELLED if entry.label is None else self.labels.code(entry.label, learn=not name)
        if code is None:
            assert entry.label is not None
            self._check_unknown(name, entry.key, entry.label)
        if isinstance(entry, Rejected):
            return Bad(name, key, UNLABELLED if code is None else code, entry.reason, entry.detail)
        if code is None:
            return Bad(
                name, key, UNLABELLED, "unknown_label", f"label {str(entry.label)[:60]!r} is no class of the set"
            )
        return Candidate(name, key, code, entry.place._replace(uri=prefix + entry.place.uri))

    def _check_unknown(self, name: str, key: str, label: int | str) -> None:
        """Refuse a label that cannot be meant: one of a test set that is no class, or one that is spelt otherwise
        (DataError).

        Classes that source.class_names leaves out, and numbers that the data's own names do not reach, pass: they are
        quarantined with their reason.
        """
        if (name, label) in self._left_out:
            return
        known = self.labels.names
        where = getattr(self.sets[name], "where", "source")
        if self.chosen is not None and isinstance(label, int):
            what = f"has {len(known):,} names, and {key} has label {label}"
            raise DataError("source.class_names", what, "name every class, in the order of the labels")
        if same_but_spelling(str(label), known) or (name and self.chosen is None):
            near = near_match(str(label), known)
            shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            what = (
                f"label {str(label)[:60]!r} of {key} is no class of {'the main set' if name else 'the set'} ({shown})"
            )
            fix = f"there it is {near!r}: spell both alike" if near else "take these images out, or add the class"
            raise DataError(where, what, fix)
        self._left_out.add((name, label))

    def _cut(self, name: str) -> dict[int, int]:
        """For each code the largest key hash that stays; 16 bytes of memory an entry."""
        assert self._limit is not None
        hashes, codes = array("Q"), array("q")
        for group in self._coded(name):
            hashes.extend(_hash(entry.key) for entry in group)
            codes.extend(entry.code for entry in group)
        of, value = np.frombuffer(codes, np.int64), np.frombuffer(hashes, np.uint64)
        present, sizes = np.unique(of, return_counts=True)
        least = (present != UNLABELLED).astype(np.int64)
        if self._limit < int(least.sum()):
            raise ConfigError(
                "source.limit", f"{self._limit:,} images for {int(least.sum()):,} classes", "raise the limit"
            )
        shares = apportion(min(self._limit, len(of)), sizes.astype(np.int64), least, sizes.astype(np.int64))
        cut = {}
        for code, share in zip(present.tolist(), shares.tolist(), strict=True):
            cut[code] = int(np.partition(value[of == code], share - 1)[share - 1]) if share else -1
        return cut


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def check_memory(images: int) -> None:
    """Refuse a set whose catalog is larger than this machine's memory (ClusterError)."""
    total = psutil.virtual_memory().total
    if images * MEMORY > total:
        what = f"the catalog of {images:,} images takes about {images * MEMORY >> 30:,} GiB of memory"
        raise ClusterError(
            "source", f"{what}, this machine has {total >> 30:,}", "set source.limit, or start it on a larger machine"
        )


def planned_labels(spec: RunSpec) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Labels of the training images that a run would have if every image were good and distinct, and the class names.

    Lists the source and opens no image, for a plan before there is a catalog. Raises DataError or ConfigError.
    """
    listing = Listing(spec)
    codes: list[int] = []
    tests = 0
    for group in listing.groups():
        codes += [candidate.code for candidate in group if not candidate.set]
        tests += sum(1 for candidate in group if candidate.set)
    names, numbers = listing.classes()
    labels = numbers[np.array(codes, np.int64)]
    sizes = np.bincount(labels, minlength=len(names)).astype(np.int64)
    require_all(sizes, names)
    given_test = "test" in listing.sets
    if given_test and not tests:
        refuse_empty_test(entry.reason for entry in listing.bad if entry.set)
    in_train, _, _ = allocate(spec.split, sizes, given_test=given_test)
    return np.repeat(np.arange(len(names), dtype=np.int32), in_train), names
