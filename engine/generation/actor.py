"""The Ray actor: one pinned pipeline, shard numbers in, small records out; failures that a user can meet come back as
values."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__, errors
from engine.cluster import memory
from engine.errors import ClusterError, MimeoError, StorageError
from engine.generation.attempts import MAX_DEATHS, Attempts
from engine.generation.gate import Budget
from engine.generation.generation_worker import Provenance
from engine.generation.sample_plan import Plan
from engine.shards.names import PLAN, PlanFacts
from engine.shards.records import Record
from engine.spec import RunSpec, spec_hash
from engine.storage import origin
from engine.storage.store import open_store

if TYPE_CHECKING:
    from engine.cluster.board import Board
    from engine.diffusion.checkpoint import Checkpoint
    from engine.generation.generation_worker import Progress, Shard, ShardWorker
    from engine.generation.requests import RealPixels

REPORT_S = 2.0
WORKER_DIED = "worker_died"
LOADING = "loading"


@dataclass(frozen=True)
class Adapter:
    """A LoRA file, as path or URL, and its SHA-256."""

    place: Path | str
    sha256: str


@dataclass(frozen=True)
class Order:
    """What an actor needs to begin: small, picklable; models, conditions and images are loaded where the actor runs.

    Models that lie on an object store travel as URL and digests, and are fetched once to the actor's own node.

    `session` names the driver's session, `actors` says how many of them there are; `features` is the digest of the
    model that gives CLIP scores, where there is one.
    """

    url: str
    spec: RunSpec
    checkpoint: Checkpoint
    lora: Adapter | None
    device: str
    session: str
    actors: int
    features: str = ""


def build_worker(order: Order, progress: Progress | None = None) -> ShardWorker:
    """Load everything and return a worker; raises MimeoErrors where model, conditions or real images cannot be used."""
    from engine.generation.meter import Meter

    spec, store = order.spec, open_store(order.url)
    if not store.exists(PLAN):
        fix = "use an object store, or a disk that is mounted at the same path on every node"
        raise StorageError(f"node {socket.gethostname()}", f"does not see the output {store.url}", fix)
    meter = Meter(spec.resources, order.device, store)

    import torch

    from engine.conditions import table
    from engine.diffusion import batchsize, checkpoint, classes, hub, lora, prompt_cuts
    from engine.diffusion.sampler import Sampler
    from engine.generation.generation_worker import ShardWorker
    from engine.generation.requests import Requests

    torch.set_num_threads(spec.resources.threads)
    if order.device == "cpu":
        memory.keep_freed()
    pipeline = checkpoint.load(order.checkpoint, order.device, spec.model.dtype)
    if order.lora is not None:
        adapter_file = hub.file_here(order.lora.place, order.lora.sha256)
        with origin.unchanged({adapter_file: order.lora.sha256}):
            lora.attach(pipeline, adapter_file, spec.model.lora_scale)
    sampler = Sampler(pipeline, spec.generate, spec.resources.fast)
    adapter = order.lora.sha256 if order.lora else None
    batch_size = batchsize.choose(spec, order.device, order.checkpoint.digest, adapter, sampler.fits)
    sampler.expect(batch_size)
    conditions = table.load(store, spec)
    numbers = classes.numbers(order.checkpoint, conditions.class_names, spec.model)
    conditions = replace(conditions, class_numbers=numbers)
    return ShardWorker(
        spec,
        store,
        Plan(spec, conditions.labels, conditions.class_names),
        Requests(spec, conditions, _real_pixels(order), _scorer(order)),
        sampler,
        batch_size=batch_size,
        plan_facts=PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec)),
        provenance=provenance(order),
        device=order.device,
        readers=prompt_cuts.of_folder(order.checkpoint.path),
        progress=progress,
        meter=meter,
    )


def provenance(order: Order) -> Provenance:
    """What every sample of the run has in common, for its JSON."""
    generate = order.spec.generate
    return {
        "guidance_scale": generate.guidance_scale,
        "scheduler": generate.scheduler,
        "num_inference_steps": generate.num_inference_steps,
        "spec_hash": spec_hash(order.spec),
        "checkpoint": order.checkpoint.digest,
        "lora": None if order.lora is None else order.lora.sha256,
        "engine": __version__,
    }


def _real_pixels(order: Order) -> RealPixels | None:
    if order.spec.generate.strength >= 1:
        return None
    from engine.images import catalog
    from engine.images.image_reader import Reader

    train = catalog.load(open_store(order.url)).split("train")
    reader = Reader(order.spec)
    return lambda rows: reader.pixels(train.take(rows))


def _scorer(order: Order) -> Any:
    if order.spec.generate.gate.min_clip_score is None:
        return None
    from engine.conditions import featuremodel
    from engine.conditions.features import FeatureExtractor

    model = featuremodel.scorer(order.spec, order.checkpoint.path)
    return FeatureExtractor(model, order.device, order.features)


class ShardActor:
    """One worker under Ray Data: a row is a list of shards, a list of records comes back.

    Ray calls it for two rows at once, each from a thread of its own. Whatever touches the device (the loading too) is
    done in one further thread, a shard after another.
    """

    _build = staticmethod(build_worker)

    def __init__(self, order: Order, board: Board | None = None) -> None:
        self._order, self._board, self._said = order, board, 0.0
        self._attempts = Attempts(open_store(order.url), order.session)
        self._budget, self._counting = Budget(order.spec.generate.gate, order.spec.generate.count), threading.Lock()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._fault: MimeoError | None = None
        try:
            with self._attempts.trying(LOADING) as number:
                if number > MAX_DEATHS + order.actors:
                    what = f"{number - 1} workers died while they loaded the model"
                    raise ClusterError("generate", what, "give each actor more memory, or lower resources.actors")
                self._worker = self._device.submit(self._build, order, self._report).result()
        except MimeoError as error:
            self._fault = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        records: list[Record] = []
        try:
            if self._fault is not None:
                raise self._fault
            for k in json.loads(batch["shards"][0]):
                records.append(self._make(k))
                with self._counting:
                    self._budget.add(records[-1].planned, [entry.reason for entry in records[-1].quarantined])
            fault = ""
        except MimeoError as error:
            fault = pack(error)
        except Exception as error:
            _die_of_device_fault(error)
            raise
        texts = [record.to_json().decode() for record in records]
        return {"asked": [str(batch["shards"][0])], "records": [json.dumps(texts)], "fault": [fault]}

    def _make(self, k: int) -> Record:
        """Prepare a shard, marked as tried, while another one is drawn; draw it in its turn; publish it beside the next
        one.

        A shard that kills takes those beside it along. So one over which a worker has died is marked in its turn alone,
        and what waits meanwhile was never marked before: no shard is held responsible for another's deaths twice.
        """
        name = self._worker.plan_facts.shard(k)
        with ExitStack() as marks:
            if self._attempts.deaths(name):
                return self._device.submit(self._make_alone, k, name).result()
            shard = self._worker.prepare(k, marks.enter_context(self._attempts.trying(name)))
            self._device.submit(self._draw, shard).result()
            return self._worker.publish(shard)

    def _make_alone(self, k: int, name: str) -> Record:
        with self._attempts.trying(name) as number:
            if number > MAX_DEATHS:
                return self._worker.publish(self._worker.give_up(k, WORKER_DIED, number - 1))
            shard = self._worker.prepare(k, number)
            self._draw(shard)
            return self._worker.publish(shard)

    def _draw(self, shard: Shard) -> None:
        self._worker.draw(shard)

    def _report(self, k: int, passed: int) -> None:
        """Say at most every two seconds how far the current shard is."""
        if self._board is not None and time.monotonic() - self._said >= REPORT_S:
            import ray

            self._said = time.monotonic()
            name = ray.get_runtime_context().get_actor_id() or ""
            self._board.update(name, passed, self._order.spec.generate.shard_size, "images", shard=k)


def _die_of_device_fault(error: Exception) -> None:
    """End the process where its device is lost: CUDA is of no use to a process after a fault. Ray starts another
    one."""
    import torch

    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        os._exit(70)


def pack(error: MimeoError) -> str:
    """A MimeoError as text, since Ray would wrap it in exceptions of its own."""
    return json.dumps([type(error).__name__, error.where, error.what, error.fix])


def unpack(text: str) -> MimeoError:
    """The error that `pack` has written."""
    kind, *words = json.loads(text)
    error: MimeoError = getattr(errors, kind)(*words)
    return error
