"""What a synthetic set has cost so far: device time, energy and price, added up from records and the workers' usage
files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TypedDict

from engine import output
from engine.shards import records as stored
from engine.shards.names import PlanFacts
from engine.shards.records import Record
from engine.spec import canonical_json
from engine.storage.parallel import mapped
from engine.storage.store import Store

FOLDER = output.USAGE
HOUR_S = 3600.0
KWH_J = 3.6e6
ENOUGH = 0.999  # of the device time with a known energy counts as all of it
Device = tuple[str, str]  # kind and name
UNITS = {"cuda": "GPU", "cpu": "core"}


@dataclass(frozen=True)
class Amount:
    """Device time in seconds; `joules` is the energy of the `metered` seconds among them."""

    seconds: float = 0.0
    joules: float = 0.0
    metered: float = 0.0

    @classmethod
    def of(cls, seconds: float, joules: float | None) -> Amount:
        """One measurement; `joules` is None where there is no counter."""
        return cls(seconds) if joules is None else cls(seconds, joules, seconds)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.seconds + other.seconds, self.joules + other.joules, self.metered + other.metered)

    def less(self, other: Amount) -> Amount:
        """What this is more than another amount, never below nothing."""
        pairs = zip(
            (self.seconds, self.joules, self.metered), (other.seconds, other.joules, other.metered), strict=True
        )
        seconds, joules, metered = (max(0.0, a - b) for a, b in pairs)
        return Amount(seconds, joules if metered else 0.0, min(metered, seconds))

    @property
    def measured(self) -> float:
        """Share of the time whose energy is known."""
        return self.metered / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Usage:
    """What one worker process has used in its life, and how much of that is in the records of its shards
    (`booked_...`).

    `device_seconds` and `joules` are those of its share of a device; `joules` is None without a counter; `updated`:
    Unix time.
    """

    host: str
    pid: int
    device: str
    device_name: str
    device_seconds: float
    booked_seconds: float
    joules: float | None
    booked_joules: float
    updated: float

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return (canonical_json(asdict(self)) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Usage | None:
        """Read a usage file; None where it is torn or not one: what it said is then not counted."""
        try:
            data = json.loads(text)
            found = cls(**{one.name: data[one.name] for one in fields(cls)})
            numbers = (found.device_seconds, found.booked_seconds, found.joules or 0.0, found.booked_joules)
            named = isinstance(found.device, str) and isinstance(found.device_name, str)
            return found if named and all(type(n) in (int, float) and n >= 0 for n in numbers) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def booked(self) -> Amount:
        """What was in records once; more than there is in them now is that of shards that were removed or made
        again."""
        return Amount.of(self.booked_seconds, None if self.joules is None else self.booked_joules)

    def unbooked(self) -> Amount:
        """What never was in a record: loading, waiting, and work that was lost or is not finished."""
        whole = Amount.of(self.device_seconds, self.joules)
        return whole.less(self.booked())


class CostJson(TypedDict):
    """A cost in hours, kWh and the unit of the price."""

    unit: str
    device_hours: float
    device_hours_in_shards: float
    device_hours_beside: float
    devices: dict[str, float]
    accepted: int
    drawn: int
    accepted_per_device_hour: float | None
    energy_kwh: float | None
    energy_measured_share: float
    price_per_hour: float | None
    price_per_1000_accepted: float | None
    shards: int
    shards_of_unknown_cost: int


@dataclass(frozen=True)
class Cost:
    """The cost of a set. `shards`, `planned`, `accepted`, `drawn` count the shards and samples whose records tell a
    cost.

    `unknown`: shards that do not tell (made by an older engine, or rebuilt from their tars); `finished`: what the
    records hold; `other`: what the workers used beside; `devices`: device time in seconds by (kind, name).
    """

    shards: int = 0
    unknown: int = 0
    planned: int = 0
    accepted: int = 0
    drawn: int = 0
    finished: Amount = Amount()
    other: Amount = Amount()
    devices: dict[Device, float] = field(default_factory=dict)

    @property
    def total(self) -> Amount:
        """All device time and energy."""
        return self.finished + self.other

    @property
    def hours(self) -> float:
        """All device time, in hours."""
        return self.total.seconds / HOUR_S

    @property
    def unit(self) -> str:
        """What a device is here: GPU, core, or device where both were used."""
        kinds = {UNITS.get(kind, "device") for kind, _ in self.devices}
        return kinds.pop() if len(kinds) == 1 else "device"

    @property
    def accepted_per_hour(self) -> float | None:
        """Accepted images a device-hour, None before anything is known."""
        return self.accepted / self.hours if self.hours else None

    @property
    def kwh(self) -> float | None:
        """Energy where it was measured, None where it was nowhere."""
        return self.total.joules / KWH_J if self.total.metered else None

    def per_1000(self, price_per_hour: float | None) -> float | None:
        """Price of 1,000 accepted images at a price of one device-hour, None where either is unknown."""
        return (
            1000 * price_per_hour * self.hours / self.accepted if price_per_hour is not None and self.accepted else None
        )

    def ahead(self, planned: int) -> Amount:
        """What `planned` further samples need at the rate of the finished shards, without loading and losses."""
        share = planned / self.planned if self.planned else 0.0
        seconds, done = self.finished.seconds * share, self.finished
        return Amount.of(seconds, done.joules * share if done.measured >= ENOUGH else None)

    def to_json(self, price_per_hour: float | None = None) -> CostJson:
        """Plain data in hours, kWh and the unit of the price."""
        return {
            "unit": self.unit,
            "device_hours": self.hours,
            "device_hours_in_shards": self.finished.seconds / HOUR_S,
            "device_hours_beside": self.other.seconds / HOUR_S,
            "devices": {name: seconds / HOUR_S for (_, name), seconds in sorted(self.devices.items())},
            "accepted": self.accepted,
            "drawn": self.drawn,
            "accepted_per_device_hour": self.accepted_per_hour,
            "energy_kwh": self.kwh,
            "energy_measured_share": self.total.measured,
            "price_per_hour": price_per_hour,
            "price_per_1000_accepted": self.per_1000(price_per_hour),
            "shards": self.shards,
            "shards_of_unknown_cost": self.unknown,
        }

    def lines(self, price_per_hour: float | None = None) -> list[tuple[str, str]]:
        """The cost as (name, value) lines for a person; empty before anything is known."""
        if not self.hours:
            return []
        names = ", ".join(sorted({name for _, name in self.devices}))
        shards, beside = figure(self.finished.seconds / HOUR_S), figure(self.other.seconds / HOUR_S)
        rows = [
            ("device time", f"{figure(self.hours)} {self.unit}-hours ({names})"),
            ("of which", f"{shards} in finished shards, {beside} loading, waiting, lost or unfinished"),
        ]
        if self.accepted and self.accepted_per_hour is not None:
            share = f", {100 * self.accepted / self.drawn:.1f} %" if self.drawn else ""
            rows += [
                ("accepted", f"{self.accepted:,} of {self.drawn:,} drawn{share}"),
                ("yield", f"{figure(self.accepted_per_hour)} accepted images a {self.unit}-hour"),
            ]
        if self.kwh is not None:
            rows.append(("energy", self._energy(self.kwh)))
        if price_per_hour is not None:
            rows.append(("price", self._price(price_per_hour)))
        if self.unknown:
            rows.append(("cost not known", f"of {self.unknown:,} further shards, whose records do not tell it"))
        return rows

    def _energy(self, kwh: float) -> str:
        if self.total.measured < ENOUGH:
            return f"{figure(kwh)} kWh, measured over {100 * self.total.measured:.0f} % of the device time"
        each = f", {figure(1000 * kwh / self.accepted)} kWh per 1,000 accepted images" if self.accepted else ""
        return f"{figure(kwh)} kWh{each}"

    def _price(self, price_per_hour: float) -> str:
        each = self.per_1000(price_per_hour)
        first = f"{figure(each)} per 1,000 accepted images; " if each is not None else ""
        return f"{first}{figure(price_per_hour * self.hours)} in all, at {price_per_hour:g} a {self.unit}-hour"


def figure(value: float) -> str:
    """A number for a person: three significant digits, no exponent from 0.001 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def gather(store: Store, facts: PlanFacts) -> Cost:
    """The cost of an output, read from its records and usage files."""
    found = list(stored.published(store, facts).values())
    known = [record for record in found if record is not None]
    return total(known, usages(store), len(found) - len(known))


def usages(store: Store) -> list[Usage]:
    """The usage files of all workers that ever worked on an output."""
    names = [entry.name for entry in store.list(f"{FOLDER}/")]
    return [found for found in mapped(lambda name: Usage.from_json(_read(store, name)), names) if found is not None]


def total(records: Sequence[Record], used: Sequence[Usage], unknown: int = 0) -> Cost:
    """Add up the records of published shards and the usage of workers; `unknown`: further shards without a record."""
    known = [record for record in records if record.device_seconds is not None]
    finished = _by_device((_record_key(r), Amount.of(r.device_seconds or 0.0, r.joules)) for r in known)
    booked = _by_device((_usage_key(u), u.booked()) for u in used)
    gone = {key: amount.less(finished.get(key, Amount())) for key, amount in booked.items()}
    other = _by_device([*((_usage_key(u), u.unbooked()) for u in used), *gone.items()])
    return Cost(
        shards=len(known),
        unknown=len(records) - len(known) + unknown,
        planned=sum(record.planned for record in known),
        accepted=sum(record.count for record in known),
        drawn=sum(record.drawn or 0 for record in known),
        finished=sum(finished.values(), Amount()),
        other=sum(other.values(), Amount()),
        devices={key: amount.seconds for key, amount in _by_device([*finished.items(), *other.items()]).items()},
    )


def _by_device(amounts: Iterable[tuple[Device, Amount]]) -> dict[Device, Amount]:
    out: dict[Device, Amount] = {}
    for key, amount in amounts:
        if amount.seconds:
            out[key] = out.get(key, Amount()) + amount
    return out


def _record_key(record: Record) -> Device:
    return record.device.partition(":")[0], record.device_name or record.device


def _usage_key(usage: Usage) -> Device:
    return usage.device, usage.device_name


def _read(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except FileNotFoundError:
        return b""
