"""Makes one shard from start to end: draw in fixed batches, gate, draw again, encode beside the next batch, publish,
record."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from engine.errors import DataError
from engine.generation.gate import MIN_JUDGED, Gate, none_passed
from engine.generation.meter import Meter, Spent
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan, Rows, SampleFacts, facts_digest
from engine.images.encode import encode
from engine.shards import records
from engine.shards.names import PlanFacts, tar_path
from engine.shards.records import Record
from engine.shards.writer import Quarantined, ShardBuilder
from engine.spec import RunSpec, canonical_json
from engine.storage.store import Store

if TYPE_CHECKING:
    from engine.diffusion.prompt_cuts import Readers
    from engine.diffusion.sampler import Drawn, Request, Sampler

Progress = Callable[[int, int], None]
Kept = tuple[int, int, Any, float | None]  # position in the shard, seed, pixels, CLIP score
Failures = dict[int, str]  # reasons by position
Encoded = tuple[int, Failures]


@dataclass
class Shard:
    """A shard in the making: its planned samples, the attempt that is being drawn, and what is kept so far.

    `number` says how often its making was begun, by whatever worker; `used` what its drawing took; `record` is there
    once it is published.
    """

    index: int
    number: int
    began: Spent
    rows: Rows
    facts: list[SampleFacts]
    attempt: int = 1
    drawn: int = 0
    passed: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    builder: ShardBuilder = field(default_factory=ShardBuilder)
    used: Spent = field(default_factory=Spent)
    record: Record | None = None


class Provenance(TypedDict):
    """What every sample of a run has in common, for its JSON."""

    guidance_scale: float
    scheduler: str
    num_inference_steps: int
    spec_hash: str
    checkpoint: str
    lora: str | None
    engine: str


class ShardWorker:
    """Holds a sampler and draws shards with it, one after another; knows nothing of Ray.

    Batches are cut from the shard in index order and what fails the gate is drawn again after them, so what shares a
    batch with what depends on the spec and the batch size alone. `provenance` goes into every sample's JSON, and what
    `readers` cut off its prompt (tokens by tokenizer, where any are); `meter` has run since the worker began to load.
    """

    def __init__(
        self,
        spec: RunSpec,
        store: Store,
        plan: Plan,
        requests: Requests,
        sampler: Sampler,
        *,
        batch_size: int,
        plan_facts: PlanFacts,
        provenance: Provenance,
        device: str = "cpu",
        readers: Readers | None = None,
        progress: Progress | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.spec, self.store, self.plan, self.requests, self.sampler = spec, store, plan, requests, sampler
        self.plan_facts, self.provenance, self.device, self.progress = plan_facts, provenance, device, progress
        self.batch_size, self.readers = batch_size, readers
        self.gate = Gate(spec.generate.gate)
        self.meter = meter or Meter(spec.resources, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def make(self, k: int, number: int = 1) -> Record:
        """Shard `k` from start to end, as `prepare`, `draw` and `publish` make it."""
        shard = self.prepare(k, number)
        self.draw(shard)
        return self.publish(shard)

    def prepare(self, k: int, number: int = 1) -> Shard:
        """What is planned for shard `k`, or its record where it is published; `number` only goes into the record.

        May run beside the drawing of another shard, as may `publish`.
        """
        first, stop = self.plan.shard(k)
        conditions = self.requests.conditions
        facts = self.plan.facts(first, stop, conditions.keys, conditions.prompts)
        shard = Shard(k, number, self.meter.now(), self.plan.rows(first, stop), facts)
        if self.store.exists(tar_path(self.plan_facts.shard(k))):
            shard.record = self._published(shard)
        return shard

    def draw(self, shard: Shard) -> None:
        """Everything that needs the device, unless the shard is published; DataError where no sample passes the
        gate."""
        if shard.record is not None:
            return
        shard.began = self.meter.now()
        for attempt in range(1, self.spec.generate.gate.max_attempts + 1):
            positions = sorted(shard.failed) if attempt > 1 else list(range(len(shard.rows)))
            if not positions:
                break
            shard.attempt, shard.failed = attempt, {}
            self._draw(shard, positions)
        for position, reason in sorted(shard.failed.items()):
            self._quarantine(shard, position, reason, self.spec.generate.gate.max_attempts)
        shard.used = self.meter.since(shard.began)

    def give_up(self, k: int, reason: str, number: int) -> Shard:
        """Shard `k` without samples, all of them quarantined: what remains of one that kills its workers."""
        shard = self.prepare(k, number)
        for position in range(len(shard.rows)):
            self._quarantine(shard, position, reason, number)
        return shard

    def publish(self, shard: Shard) -> Record:
        """Publish a drawn shard, unless it is, and return its record; StorageError where the store refuses."""
        if shard.record is None:
            shard.record = self._publish(shard)
        return shard.record

    def _draw(self, shard: Shard, positions: Sequence[int]) -> None:
        """Draw one attempt of the samples at `positions`; encoding of a batch runs beside the drawing of the next."""
        asked: deque[tuple[Sequence[int], list[int], list[Request]]] = deque()
        encoding: Future[Encoded] | None = None
        for drawn in self.sampler.stream(self._ask(shard, positions, asked)):
            batch, seeds, requests = asked.popleft()
            scores = self.requests.clip_scores(drawn, requests)
            kept, failed = self._pass(batch, seeds, drawn, scores)
            if encoding is not None:
                self._count(shard, *encoding.result())
                encoding = None
            if kept:
                encoding = self._thread.submit(self._encode, shard, shard.attempt, kept, failed)
            else:
                self._count(shard, 0, failed)
        if encoding is not None:
            self._count(shard, *encoding.result())

    def _ask(
        self,
        shard: Shard,
        positions: Sequence[int],
        asked: deque[tuple[Sequence[int], list[int], list[Request]]],
    ) -> Iterator[list[Request]]:
        """The requests of each batch; `asked` is told its positions and seeds too."""
        size = self.batch_size
        batches = [positions[i : i + size] for i in range(0, len(positions), size)]
        for batch, pixels in self._with_real_pixels(shard, batches):
            seeds = self.plan.seeds(shard.rows.index[batch], shard.attempt).tolist()
            requests = self.requests.make(shard.rows, shard.facts, batch, seeds, pixels, self.sampler)
            asked.append((batch, seeds, requests))
            yield requests

    def _with_real_pixels(self, shard: Shard, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], Any]]:
        """Each batch with the real images that its latents start from, read and decoded beside the drawing of the one
        before."""
        if not self.requests.needs_real_pixels:
            yield from ((batch, None) for batch in batches)
            return
        ahead = self._thread.submit(self.requests.real_pixels, shard.rows.init_row[batches[0]])
        for number, batch in enumerate(batches, start=1):
            pixels = ahead.result()
            if number < len(batches):
                ahead = self._thread.submit(self.requests.real_pixels, shard.rows.init_row[batches[number]])
            yield batch, pixels

    def _pass(
        self, batch: Sequence[int], seeds: Sequence[int], drawn: Sequence[Drawn], scores: Sequence[float | None]
    ) -> tuple[list[Kept], Failures]:
        """Gate a batch: what is kept, and the reasons of the rest."""
        kept: list[Kept] = []
        failed: Failures = {}
        for position, seed, image, score in zip(batch, seeds, drawn, scores, strict=True):
            reason = image.reason if image.pixels is None else self.gate.check(image.pixels, score)
            if reason is None:
                kept.append((position, seed, image.pixels, score))
            else:
                failed[position] = reason
        return kept, failed

    def _count(self, shard: Shard, passed: int, failed: Failures) -> None:
        """Count a batch: what is encoded, and what failed the gate or the encoder; DataError where none of many has
        passed."""
        shard.passed += passed
        shard.drawn += passed + len(failed)
        shard.failed |= failed
        if self.progress is not None:
            self.progress(shard.index, shard.passed)
        if not shard.passed and shard.drawn >= MIN_JUDGED and self.spec.generate.gate.max_quarantined < 1:
            raise none_passed(Counter(shard.failed.values()), shard.drawn)

    def _encode(self, shard: Shard, attempt: int, kept: Sequence[Kept], failed: Failures) -> Encoded:
        """Encode what is kept of a batch into the shard: how many there are, and all that failed; beside the next
        batch."""
        generate, failed = self.spec.generate, dict(failed)
        encoded = 0
        for position, seed, pixels, score in kept:
            fact = shard.facts[position]
            key = self.plan_facts.key(fact["index"])
            drawn: dict[str, object] = {
                "key": key,
                "seed": seed,
                "attempt": attempt,
                "clip_score": None if score is None else round(score, 6),
            }
            try:
                image = encode(pixels, generate.format, generate.quality)
            except (ValueError, OSError, RuntimeError) as error:
                failed[position] = f"error: {type(error).__name__}: {error}"
                continue
            cut = self.readers.lost(fact["prompt"]) if self.readers is not None else {}
            drawn |= {"prompt_cut": cut} if cut else {}
            files = {
                generate.format: image,
                "cls": str(fact["label"]).encode(),
                "json": canonical_json({**fact, **drawn, **self.provenance}).encode(),
                "txt": fact["prompt"].encode(),
            }
            shard.builder.add(key, files)
            encoded += 1
        return encoded, failed

    def _quarantine(self, shard: Shard, position: int, reason: str, attempts: int) -> None:
        fact = shard.facts[position]
        shard.builder.quarantine(Quarantined(fact["index"], fact["label"], reason, attempts))

    def _publish(self, shard: Shard) -> Record:
        """Publish the tar, which is the commit, then the record; where another writer was first, its shard is the
        one."""
        tar = shard.builder.finish()
        if not self.store.create(tar_path(self.plan_facts.shard(shard.index)), tar.pieces):
            return self._published(shard)
        spent = replace(shard.used, seconds=self.meter.since(shard.began).seconds)
        record = records.make(
            self.plan_facts,
            shard.index,
            tar,
            shard.builder.quarantined,
            facts_digest(shard.facts),
            attempt=shard.number,
            batch_size=self.batch_size,
            device=self.device,
            device_name=self.meter.name,
            drawn=shard.drawn,
            **spent.rounded(),
        )
        records.publish(self.store, record)
        self.meter.book(spent)
        return record

    def _published(self, shard: Shard) -> Record:
        """The record of a shard that is there already; one that was lost with its writer is rebuilt from the tar."""
        return record_of(self.store, self.plan_facts, shard.index, lambda _: facts_digest(shard.facts))


def record_of(store: Store, facts: PlanFacts, k: int, plan_digest: Callable[[int], str]) -> Record:
    """The record of published shard `k`; one that is absent or broken is made again from the tar."""
    try:
        stored = records.load(store, facts.shard(k))
    except DataError:
        stored = None
    if stored is None:
        stored = records.rebuild(store, facts, k, plan_digest(k))
        records.publish(store, stored)
    return stored
