"""The pool of pinned Ray Data actors: rows of shards in, records out as they come; begun anew where it no longer
moves."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.errors import ClusterError
from engine.generation import attempts
from engine.generation.actor import Order, ShardActor, unpack
from engine.shards.records import Record

if TYPE_CHECKING:
    from engine.cluster.board import Board

MAX_ROWS = 10_000  # rows that the driver hands to Ray Data; a longer plan puts several shards in a row
IN_FLIGHT = 2  # rows at an actor: one is drawn while the other is published, or waits for its turn
MAX_RESTARTS = 3  # in a row, without one finished shard between them
POLL_S = 1.0

Row = dict[str, str]
Stuck = Callable[[], bool]


class _Stalled(Exception):
    """Nothing moves in an execution of the pool."""


def rows(pending: Sequence[int]) -> list[Row]:
    """One row a shard; where there are very many, several shards a row, as the driver pays for every row."""
    size = -(-len(pending) // MAX_ROWS)
    return [{"shards": json.dumps(pending[i : i + size])} for i in range(0, len(pending), size)]


def records(
    what: Order, todo: Sequence[Row], board: Board, stuck: Stuck, note: Callable[[str], None]
) -> Generator[Record, None, None]:
    """Records as the actors finish shards; one row is one block is one task, so that a task that is lost is one row
    again.

    Ray Data waits for ever for a task whose node has frozen. Where `stuck` says that nothing moves, the pool is ended
    and a new one makes the rows that have not come; should an old worker wake up, the shard that is published first
    stays. Raises ClusterError where one new pool after another does not move either, and what the actors report.
    """
    left = {row["shards"]: row for row in todo}
    idle = 0
    while left:
        try:
            for row in _run(what, list(left.values()), board, stuck):
                for text in json.loads(row["records"]):
                    yield Record.from_json(text.encode(), "a worker's reply")
                if row["fault"]:
                    raise unpack(row["fault"])
                del left[row["asked"]]
                idle = 0
        except _Stalled:
            idle += 1
            if idle > MAX_RESTARTS:
                fix = "look at the nodes, then run the same command again"
                raise ClusterError(
                    "generate", f"nothing moves, after {MAX_RESTARTS} new pools of workers", fix
                ) from None
            what = replace(what, session=attempts.new_session())
            note(f"generate: nothing moves; a new pool of workers makes the {len(left)} tasks that have not come")


def _run(what: Order, todo: list[Row], board: Board, stuck: Stuck) -> Generator[Row, None, None]:
    """One execution of the pool; its rows come by way of a thread, since Ray Data cannot be asked whether there is
    one."""
    came: queue.Queue[Row | BaseException | None] = queue.Queue()
    dataset = _dataset(what, todo, board)
    with _stoppable(dataset) as executors:

        def pump() -> None:
            try:
                for row in dataset.iter_rows():
                    came.put(row)
                came.put(None)
            except BaseException as error:
                came.put(error)

        thread = threading.Thread(target=pump, daemon=True, name="pool")
        thread.start()
        try:
            yield from _taken(came, stuck)
        finally:
            for executor in executors:
                executor.shutdown(force=True)
            thread.join(timeout=10)


def _taken(came: queue.Queue[Row | BaseException | None], stuck: Stuck) -> Generator[Row, None, None]:
    while True:
        try:
            one = came.get(timeout=POLL_S)
        except queue.Empty:
            if stuck():
                raise _Stalled from None
            continue
        if one is None:
            return
        if isinstance(one, BaseException):
            raise one
        yield one


@contextmanager
def _stoppable(dataset: Any) -> Generator[list[Any], None, None]:
    """The executors that a data set makes in the block; Ray Data gives none away before the first row has come."""
    made: list[Any] = []
    create = dataset._create_executor

    def kept() -> Any:
        made.append(create())
        return made[-1]

    dataset._create_executor = kept
    yield made


def _dataset(what: Order, todo: list[Row], board: Board) -> Any:
    import ray

    resources = what.spec.resources
    options: dict[str, object] = {"num_gpus": resources.gpus_per_actor} if what.device == "cuda" else {}
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    made = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        ShardActor,
        compute=ray.data.ActorPoolStrategy(
            size=what.actors,
            max_tasks_in_flight_per_actor=IN_FLIGHT,
            max_concurrent_calls_per_actor=IN_FLIGHT,
            enable_true_multi_threading=True,
        ),
        batch_size=1,
        batch_format="numpy",
        fn_constructor_kwargs={"order": what, "board": board},
        num_cpus=resources.cpus_per_actor,
        **options,
    )
    made.set_name("generate")  # in the dashboard
    return made
