"""The plan of a synthetic set: a pure, lazy function from a sample's index to its class, anchor image, visual token,
init image and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.conditions import tokens
from engine.errors import DataError
from engine.generation.permutation import divide, hash32, keyed, permute, seeds
from engine.spec import RunSpec, canonical_json, sample_key

CHUNK = 1 << 14  # rows worked on at once: the dozen temporary arrays stay in the second-level cache

Ints = NDArray[np.int64]


SampleFacts = TypedDict(  # what is planned for a sample, in words
    "SampleFacts",
    {
        "index": int,
        "label": int,
        "class": str,
        "prompt": str,
        "anchor": str,
        "token": str | None,
        "init": str | None,
        "seed": int,
        "visual_token": str,
        "pairing": str,
        "strength": float,
    },
)


@dataclass(frozen=True)
class Rows:
    """Planned samples, one array entry each; `anchor`, `token_row` and `init_row` are rows of the training split in key
    order.

    `token_row` and `init_row` are -1 where no single real image stands behind the visual token or the initial latents;
    between
    `anchor` and `token_row` an interpolated token lies.
    """

    index: Ints
    label: NDArray[np.int32]
    anchor: Ints
    token_row: Ints
    init_row: Ints
    seed: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.index)


class Plan:
    """All samples of a run, computed where they are asked for: a plan of 1e9 samples costs nothing to open.

    `labels` (N,) holds the class of each training image in key order. Proportional plans walk through all N images in a
    new keyed order for every version (N samples); balanced ones walk through the classes, and inside a class through
    its images. Rows and seeds do not depend on `count`, so a longer plan begins with a shorter one.
    """

    def __init__(self, spec: RunSpec, labels: NDArray[np.int32], class_names: Sequence[str]) -> None:
        labels = np.ascontiguousarray(labels, dtype=np.int32)
        if labels.ndim != 1 or not len(labels):
            raise DataError("training split", "holds no image", "raise split.train")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise DataError("training split", f"has labels outside 0..{len(class_names) - 1}", "rebuild the catalog")
        tokens.check(spec.generate.visual_token, labels, class_names)
        self.spec = spec
        self.labels = labels
        self.class_names = tuple(class_names)
        self.count = spec.generate.count
        self.shard_size = spec.generate.shard_size
        self._key = sample_key(spec)

    @property
    def shards(self) -> int:
        """How many shards hold the plan; the last one may be short."""
        return -(-self.count // self.shard_size)

    def shard(self, k: int) -> tuple[int, int]:
        """The half-open index range of shard `k`; raises IndexError outside the plan."""
        if not 0 <= k < self.shards:
            raise IndexError(f"shard {k} of {self.shards}")
        return k * self.shard_size, min(self.count, (k + 1) * self.shard_size)

    def rows(self, start: int, stop: int) -> Rows:
        """Samples start..stop-1; raises IndexError outside the plan."""
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"rows {start}..{stop} of {self.count}")
        index = np.arange(start, stop, dtype=np.int64)
        anchor = np.empty(len(index), np.int64)
        seed = np.empty(len(index), np.uint64)
        token_row, init_row = (np.full(len(index), -1, np.int64) for _ in range(2))
        generate = self.spec.generate
        for first in range(0, len(index), CHUNK):
            part = slice(first, first + CHUNK)
            anchor[part] = self._anchors(index[part])
            seed[part] = self.seeds(index[part])
            token_row[part] = self._partner(generate.visual_token, index[part], anchor[part], "token")
            init_row[part] = self._partner(generate.pairing, index[part], anchor[part], "init")
        return Rows(index, self.labels[anchor], anchor, token_row, init_row, seed)

    def seeds(self, index: Ints, attempt: int = 1) -> NDArray[np.uint64]:
        """Seeds below 2**63, unique over all indices for an attempt, different between the attempts (1, 2, ...) of an
        index."""
        return seeds(np.asarray(index).astype(np.uint64), attempt, self._key)

    def facts(self, start: int, stop: int, keys: Sequence[str], prompts: Sequence[str]) -> list[SampleFacts]:
        """What is planned for samples start..stop-1 in words; `keys` and `prompts` belong to the N training images.

        A sample's prompt is what it is drawn with: its anchor's, and the quality suffix.
        """
        rows, generate = self.rows(start, stop), self.spec.generate
        columns = zip(
            *(c.tolist() for c in (rows.index, rows.label, rows.anchor, rows.token_row, rows.init_row, rows.seed)),
            strict=True,
        )
        return [
            {
                "index": index,
                "label": label,
                "class": self.class_names[label],
                "prompt": prompts[anchor] + generate.quality_suffix,
                "anchor": keys[anchor],
                "token": keys[token] if token >= 0 else None,
                "init": keys[init] if init >= 0 else None,
                "seed": seed,
                "visual_token": generate.visual_token,
                "pairing": generate.pairing,
                "strength": generate.strength,
            }
            for index, label, anchor, token, init, seed in columns
        ]

    def digest(self, start: int, stop: int, keys: Sequence[str], prompts: Sequence[str]) -> str:
        """Identity (SHA-256, hex) of the planned samples: see `facts_digest`."""
        return facts_digest(self.facts(start, stop, keys, prompts))

    def _anchors(self, index: Ints) -> Ints:
        if self.spec.generate.classes == "proportional":
            version, position = divide(index.astype(np.uint64), np.uint64(len(self.labels)))
            return permute(position, len(self.labels), keyed(self._key, "image", version)).astype(np.int64)
        kinds = len(self._present)
        block, position = divide(index.astype(np.uint64), np.uint64(kinds))
        chosen = self._present[permute(position, kinds, keyed(self._key, "class", block))]
        sizes = self._sizes[chosen].astype(np.uint64)
        version, position = divide(block, sizes)
        key = keyed(self._key, "image", version) ^ keyed(self._key, "member", chosen.astype(np.uint64))
        return self._members[self._offsets[chosen] + permute(position, sizes, key).astype(np.int64)]

    def _partner(self, choice: str, index: Ints, anchor: Ints, stream: str) -> Ints | int:
        """The real image behind a sample's visual token or initial latents: its anchor, another one of the class, or
        none."""
        if choice == "own":
            return anchor
        if choice not in ("class", "interpolation"):
            return -1
        label = self.labels[anchor]
        others = self._sizes[label] - 1
        draw = hash32(index.astype(np.uint64), keyed(self._key, stream))
        step = 1 + (draw * others.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
        place = (self._ranks[anchor] + np.where(others > 0, step, 0)) % (others + 1)
        return self._members[self._offsets[label] + place]

    @cached_property
    def _sizes(self) -> Ints:
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    @cached_property
    def _present(self) -> Ints:
        return np.flatnonzero(self._sizes)

    @cached_property
    def _offsets(self) -> Ints:
        return np.cumsum(self._sizes) - self._sizes

    @cached_property
    def _members(self) -> Ints:
        """Rows sorted by class, then by key."""
        return np.argsort(self.labels, kind="stable")

    @cached_property
    def _ranks(self) -> Ints:
        """Each row's place inside its class."""
        ranks = np.empty(len(self.labels), np.int64)
        ranks[self._members] = np.arange(len(self.labels)) - np.repeat(self._offsets, self._sizes)
        return ranks


def facts_digest(facts: Sequence[SampleFacts]) -> str:
    """SHA-256 (hex) over the canonical JSON of each planned sample, a line each."""
    lines = hashlib.sha256()
    for fact in facts:
        lines.update(canonical_json(fact).encode() + b"\n")
    return lines.hexdigest()
