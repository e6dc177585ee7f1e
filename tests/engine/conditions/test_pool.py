"""The pool of actors: order, errors as themselves, devices."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.cluster.progress import PlainReporter
from engine.conditions import pool
from engine.errors import DataError
from engine.spec.models import ResourcesSpec

RESOURCES = ResourcesSpec(device="cpu", actors=2, threads=3)
ROWS = pa.table({"value": np.arange(5 * pool.CHUNK - 7), "data": [b"\0a\0"] * (5 * pool.CHUNK - 7)})


def squares() -> pool.Work:
    return lambda rows: pa.table({"square": [v * v for v in rows["value"].to_pylist()], "data": rows["data"]})


def broken_model() -> pool.Work:
    raise DataError("where", "what: {}", "fix")


def broken_row() -> pool.Work:
    def work(rows: pa.Table) -> pa.Table:
        if rows["value"][0].as_py() >= 2 * pool.CHUNK:
            raise DataError(str(rows["value"][0].as_py()), "is bad")
        return rows

    return work


@pytest.mark.usefixtures("ray_cluster")
def test_results_stand_in_the_order_of_the_rows() -> None:
    with PlainReporter().task("squares", len(ROWS)) as task:
        out = pool.run(squares, ROWS, RESOURCES, "cpu", task)
        assert task.done == len(ROWS)
    np.testing.assert_array_equal(out["square"].to_numpy(), np.arange(len(ROWS)) ** 2)
    assert set(out["data"].to_pylist()) == {b"\0a\0"}


@pytest.mark.parametrize(
    ("make", "where", "what"), [(broken_model, "where", "what: {}"), (broken_row, "512", "is bad")]
)
@pytest.mark.usefixtures("ray_cluster")
def test_errors_come_back_as_themselves(make: pool.Make, where: str, what: str) -> None:
    with pytest.raises(DataError) as caught, PlainReporter().task("broken", len(ROWS)) as task:
        pool.run(make, ROWS.slice(0, 3 * pool.CHUNK), RESOURCES, "cpu", task)
    assert (caught.value.where, caught.value.what) == (where, what)


def test_workers_use_the_threads_that_are_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        worker = pool.ConditionActor(squares, threads=before + 2)
        out = worker(pa.table({"start": [0], "rows": [pool.packed(ROWS.slice(0, 3))]}))
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)
    assert pool.unpacked(out["rows"][0].as_py())["square"].to_pylist() == [0, 1, 4]


@pytest.mark.usefixtures("ray_cluster")
def test_work_without_a_model_stays_on_the_cpu() -> None:
    assert pool.device(ResourcesSpec(device="cuda"), needs_model=False) == "cpu"
    assert pool.device(RESOURCES, needs_model=True) == "cpu"
