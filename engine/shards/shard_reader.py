"""Reads the samples of a finished data set back, following its manifest and trusting no byte of a shard."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from engine.errors import DataError
from engine.regular import Json
from engine.shards import manifest
from engine.shards.groups import FIX, IMAGES, Group, groups
from engine.storage.store import Store, open_store
from engine.storage.tar import Member

MAX_LABEL = 20
MAX_JSON = 2**20
_LABEL = re.compile(rb"\s*([0-9]{1,9})\s*")


class Sample(NamedTuple):
    """One sample: key, encoded image, its extension, class label (None without a `.cls`), the fields of its `.json`."""

    key: str
    image: bytes
    ext: str
    label: int | None
    meta: Json


def samples(source: Store | Path | str, shards: Iterable[int] | None = None) -> Iterator[Sample]:
    """Yield the samples of a finished output (a store, or the path or URL of one) in index order.

    `shards`: indices of the shards to read, all by default. Each shard is read whole and compared with the manifest
    before its first sample is given out; raises DataError where the output is not finished or a shard is not the sealed
    one.
    """
    store = open_store(source) if isinstance(source, Path | str) else source
    rows = manifest.load(store).table.to_pylist()
    for row in rows if shards is None else (rows[index] for index in shards):
        where = f"{store.url}/{row['path']}"
        try:
            data = store.read(row["path"])
        except FileNotFoundError:
            raise DataError(where, "is missing", FIX) from None
        if len(data) != row["bytes"] or hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(where, "is not the shard that the manifest lists", FIX)
        yield from read_samples(data, where)


def read_samples(data: bytes, where: str) -> Iterator[Sample]:
    """Yield the samples of one tar held in memory; raises DataError about `where` for anything but plain samples."""
    for group in groups(io.BytesIO(data), where):
        yield _sample(data, group, f"{where}, sample {group.key}")


def _sample(data: bytes, group: Group, where: str) -> Sample:
    images = [extension for extension in group.members if extension in IMAGES]
    if len(images) != 1:
        raise DataError(where, f"has {len(images)} images", FIX)

    def content(member: Member) -> bytes:
        return data[member.offset : member.offset + member.size]

    label = None
    if "cls" in group.members:
        label = _label(content(group.members["cls"]), where)
    meta = _meta(content(group.members["json"]), where) if "json" in group.members else {}
    return Sample(group.key, content(group.members[images[0]]), images[0], label, meta)


def _label(text: bytes, where: str) -> int:
    match = _LABEL.fullmatch(text) if len(text) <= MAX_LABEL else None
    if match is None:
        raise DataError(where, "has a label that is not a number", FIX)
    return int(match[1])


def _meta(text: bytes, where: str) -> Json:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        meta = json.loads(text, parse_constant=refuse) if len(text) <= MAX_JSON else None
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise DataError(where, "has metadata that is not a JSON object of at most 1 MiB", FIX)
    return meta
