"""Work on all training images by a pool of Ray Data actors: chunks of catalog rows in, small tables out, in row
order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine import errors
from engine.cluster import session
from engine.cluster.progress import Task
from engine.errors import MimeoError
from engine.spec.recipe import ResourcesSpec

CHUNK = 256  # rows a task; part of no result: workers cut chunks into batches of a size of their own

Work = Callable[[pa.Table], pa.Table]
Make = Callable[[], Work]
Run = Callable[[Make, pa.Table, ResourcesSpec, str, Task], pa.Table]


def device(resources: ResourcesSpec, needs_model: bool) -> str:
    """Where the work runs, "cpu" or "cuda"; inside a session."""
    return session.device(resources) if needs_model else "cpu"


def run(make: Make, rows: pa.Table, resources: ResourcesSpec, where: str, task: Task) -> pa.Table:
    """Apply the work that `make` returns, once in each actor, to chunks of `rows`; the results stand in the order of
    the rows.

    `make` must be picklable and small: models are loaded in the actor. MimeoErrors of the work come back as themselves.
    """
    parts: dict[int, pa.Table] = {}
    done = 0
    for start, part in _chunks(make, rows, resources, where):
        parts[start] = part
        done += len(part)
        task.update(done)
    return pa.concat_tables([parts[start] for start in sorted(parts)])


def here(make: Make, rows: pa.Table, resources: ResourcesSpec, where: str, task: Task) -> pa.Table:
    """The same in this process, for callers that are workers themselves; the same chunks, so the same results."""
    work = _with_threads(make, resources.threads)
    parts = []
    for start in range(0, len(rows), CHUNK):
        parts.append(work(rows.slice(start, CHUNK)))
        task.update(min(start + CHUNK, len(rows)))
    return pa.concat_tables(parts)


def _chunks(make: Make, rows: pa.Table, resources: ResourcesSpec, where: str) -> Iterator[tuple[int, pa.Table]]:
    import ray

    items = [{"start": start, "rows": packed(rows.slice(start, CHUNK))} for start in range(0, len(rows), CHUNK)]
    slots: dict[str, object] = {"num_cpus": resources.cpus_per_actor}
    if where == "cuda":
        slots = {"num_gpus": resources.gpus_per_actor, "num_cpus": 0}
        if resources.labels:
            slots["label_selector"] = dict(resources.labels)
    else:  # any node will do
        resources = resources.model_copy(update={"device": "cpu", "labels": {}})
    size = min(session.actors(resources), len(items))
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ConditionActor,
        compute=ray.data.ActorPoolStrategy(size=size),
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_kwargs={"make": make, "threads": resources.threads},
        **slots,
    )
    data.set_name("conditions")  # in the dashboard
    for row in data.iter_rows():
        if row["error"]:
            raise _Fault(**json.loads(row["error"])).error()
        yield row["start"], unpacked(row["rows"])


@dataclass(frozen=True)
class _Fault:
    """A MimeoError on its way through Ray, which would wrap an exception."""

    kind: str
    args: list[str]

    @classmethod
    def of(cls, error: MimeoError) -> _Fault:
        return cls(type(error).__name__, [error.where, error.what, error.fix])

    def error(self) -> MimeoError:
        return getattr(errors, self.kind)(*self.args)


class ConditionActor:
    """The actor: makes its work on the first chunk, so that a failure there comes back as a value too."""

    def __init__(self, make: Make, threads: int) -> None:
        self._make, self._threads = make, threads
        self._work: Work | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        out: dict[str, list[Any]] = {"start": batch["start"].to_pylist(), "rows": [b""], "error": [""]}
        try:
            if self._work is None:
                self._work = _with_threads(self._make, self._threads)
            out["rows"] = [packed(self._work(unpacked(batch["rows"][0].as_py())))]
        except MimeoError as error:
            out["error"] = [json.dumps(_Fault.of(error).__dict__)]
        return pa.table(out)


def _with_threads(make: Make, threads: int) -> Work:
    import sys

    work = make()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return work


def packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
