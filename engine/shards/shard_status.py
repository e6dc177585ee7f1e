"""How far a run is, told from its plan and its records alone, while it runs or after it died."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from engine.shards import cost, records
from engine.shards.cost import Cost
from engine.shards.manifest import SEAL
from engine.shards.names import PLAN, PlanFacts
from engine.shards.records import Record
from engine.spec import spec_hash
from engine.storage.claim import read_spec
from engine.storage.holder import Holder
from engine.storage.lock import holder
from engine.storage.store import Store

WINDOW_S = 600.0


@dataclass(frozen=True)
class Status:
    """Counts of samples and shards; `rate` in samples a second and `last_record_age` in seconds, None where unknown."""

    name: str
    planned: int
    done: int
    quarantined: int
    shards: int
    shards_done: int
    rate: float | None
    last_record_age: float | None
    running: Holder | None
    finished: bool
    cost: Cost

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the present rate, None where nothing runs or the rate is unknown."""
        left = self.planned - self.done - self.quarantined
        return left / self.rate if self.running and self.rate else None

    def lines(self, price_per_hour: float | None = None) -> list[tuple[str, str]]:
        """The state as (name, value) lines for a person; with the price of a device-hour also what it has cost."""
        rate = f"{self.rate:,.3g} samples/s" if self.rate else "not known yet"
        left = timedelta(seconds=round(self.seconds_left)) if self.seconds_left is not None else None
        age = timedelta(seconds=round(self.last_record_age)) if self.last_record_age is not None else None
        running = self.running
        return [
            ("samples", f"{self.done:,} of {self.planned:,}, {self.quarantined:,} quarantined"),
            ("shards", f"{self.shards_done:,} of {self.shards:,}"),
            ("rate", rate + (f", {left} left" if left else "")),
            ("last shard", f"{age} ago" if age is not None else "none yet"),
            ("running", f"{running.what} on {running.host}, process {running.pid}" if running else "no"),
            ("manifest", "sealed" if self.finished else "not written yet"),
            *self.cost.lines(price_per_hour),
        ]


def status(store: Store) -> Status:
    """Read the state of an output; raises DataError where it holds no run."""
    facts = _facts(store)
    found = records.published(store, facts)
    known = [record for record in found.values() if record is not None]
    unknown = [facts.span(index)[1] for index, record in found.items() if record is None]
    newest = max((record.finished for record in known), default=0.0)
    return Status(
        name=facts.name,
        planned=facts.count,
        done=sum(record.count for record in known) + sum(unknown),
        quarantined=sum(len(record.quarantined) for record in known),
        shards=facts.shards,
        shards_done=len(found),
        rate=_rate(known, newest),
        last_record_age=max(0.0, time.time() - newest) if newest else None,
        running=holder(store),
        finished=store.exists(SEAL),
        cost=cost.total(known, cost.usages(store), len(unknown)),
    )


def _facts(store: Store) -> PlanFacts:
    """The plan; before there is one, what the recipe says about it."""
    if store.exists(PLAN):
        return PlanFacts.load(store)
    spec = read_spec(store)
    return PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec))


def _rate(known: list[Record], newest: float) -> float | None:
    """Samples a second over the last ten minutes before the newest record."""
    recent = [record for record in known if record.finished and record.finished > newest - WINDOW_S]
    if not recent:
        return None
    begin = max(newest - WINDOW_S, min(record.finished - record.seconds for record in recent))
    return sum(record.count for record in recent) / (newest - begin) if newest > begin else None
