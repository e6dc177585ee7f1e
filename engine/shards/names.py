"""Dense names: which shard holds which samples, and what shards and samples are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypedDict

from engine import output
from engine.errors import DataError
from engine.storage.store import Store

PLAN = output.PLAN
DATA = output.DATA


def shard_name(name: str, index: int) -> str:
    """`NAME-000123` for shard 123."""
    return f"{name}-{index:06d}"


def key(name: str, index: int) -> str:
    """`NAME-000000000123` for sample 123: unique over the whole set, sorted as its number."""
    return f"{name}-{index:012d}"


def shards_of(count: int, shard_size: int) -> int:
    """How many shards `count` samples fill; the last one may be short."""
    return -(-count // shard_size)


def tar_path(shard: str) -> str:
    """Where the tar of a shard lies in an output."""
    return f"{DATA}/{shard}.tar"


def record_path(shard: str) -> str:
    """Where the record of a shard lies in an output."""
    return f"{DATA}/{shard}.json"


class PlanJson(TypedDict):
    """`PlanFacts` as JSON."""

    name: str
    count: int
    shard_size: int
    spec_hash: str


@dataclass(frozen=True)
class PlanFacts:
    """What a plan says about its shards: a name, how many samples in all and a shard, and the hash of the spec."""

    name: str
    count: int
    shard_size: int
    spec_hash: str

    @property
    def shards(self) -> int:
        """Number of shards."""
        return shards_of(self.count, self.shard_size)

    def shard(self, index: int) -> str:
        """Name of shard `index`."""
        return shard_name(self.name, index)

    def key(self, index: int) -> str:
        """Key of sample `index`."""
        return key(self.name, index)

    def span(self, index: int) -> tuple[int, int]:
        """First sample of a shard, and how many it has."""
        first = index * self.shard_size
        return first, min(self.shard_size, self.count - first)

    def to_json(self) -> PlanJson:
        """The facts as plain data."""
        return {"name": self.name, "count": self.count, "shard_size": self.shard_size, "spec_hash": self.spec_hash}

    @classmethod
    def from_json(cls, data: Any, where: str) -> PlanFacts:
        """Check plain data (further keys are allowed); raises DataError about `where`."""
        if not isinstance(data, dict):
            raise DataError(where, "is not a plan", "restore it, or generate into a new output")
        numbers = [data.get("count"), data.get("shard_size")]
        texts = [data.get("name"), data.get("spec_hash")]
        if not all(type(n) is int and n > 0 for n in numbers) or not all(type(t) is str and t for t in texts):
            raise DataError(
                where, "lacks name, count, shard_size or spec_hash", "restore it, or generate into a new output"
            )
        return cls(data["name"], data["count"], data["shard_size"], data["spec_hash"])

    @classmethod
    def load(cls, store: Store) -> PlanFacts:
        """Read `plan.json`; raises DataError where it is absent or broken."""
        where = f"{store.url}/{PLAN}"
        try:
            data = json.loads(store.read(PLAN))
        except FileNotFoundError:
            raise DataError(where, "no such file: nothing was planned here", "run mimeo generate first") from None
        except (ValueError, RecursionError):
            raise DataError(where, "is not JSON", "restore it, or generate into a new output") from None
        return cls.from_json(data, where)
