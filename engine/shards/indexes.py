"""Index files that let other tools know the shards and their sizes: timm, open_clip and wids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from engine.shards.names import DATA

SPLIT = "train"


@dataclass(frozen=True)
class ShardSize:
    """One shard as the indexes list it: file name beside the index, samples, bytes."""

    file: str
    count: int
    bytes: int


def build(name: str, shards: Sequence[ShardSize]) -> dict[str, bytes]:
    """The index files by their path in the output, from the shards in order."""
    return {
        f"{DATA}/_info.json": _text(timm_info(shards)),
        f"{DATA}/sizes.json": _text(open_clip_sizes(shards)),
        f"{DATA}/index.json": _text(wids_index(name, shards)),
    }


class TimmSplit(TypedDict):
    """A split as timm reads it."""

    name: str
    num_samples: int
    filenames: list[str]
    shard_lengths: list[int]


class TimmInfo(TypedDict):
    """`_info.json`."""

    splits: dict[str, TimmSplit]


class WidsShard(TypedDict):
    """A shard as wids reads it."""

    url: str
    nsamples: int
    filesize: int


WidsIndex = TypedDict("WidsIndex", {"__kind__": str, "wids_version": int, "name": str, "shardlist": list[WidsShard]})


def timm_info(shards: Sequence[ShardSize]) -> TimmInfo:
    """What `timm.create_dataset("wds/...", split="train")` reads (timm/data/readers/reader_wds.py,
    `_parse_split_info`)."""
    split: TimmSplit = {
        "name": SPLIT,
        "num_samples": sum(shard.count for shard in shards),
        "filenames": [shard.file for shard in shards],
        "shard_lengths": [shard.count for shard in shards],
    }
    return {"splits": {SPLIT: split}}


def open_clip_sizes(shards: Sequence[ShardSize]) -> dict[str, int]:
    """Samples by file name (open_clip_train/data.py, `get_dataset_size`)."""
    return {shard.file: shard.count for shard in shards}


def wids_index(name: str, shards: Sequence[ShardSize]) -> WidsIndex:
    """The wids shard index, version 1 (https://github.com/webdataset/webdataset/blob/main/docs, wids)."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": name,
        "shardlist": [{"url": s.file, "nsamples": s.count, "filesize": s.bytes} for s in shards],
    }


def _text(data: Mapping[str, object]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
