"""The pool of actors: order, errors as themselves, devices."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.cluster.progress import PlainReporter
from engine.conditions import row_pool
from engine.errors import DataError
from engine.spec.recipe import ResourcesSpec

RESOURCES = ResourcesSpec(device="cpu", actors=2, threads=3)
ROWS = pa.table({"value": np.arange(5 * row_pool.CHUNK - 7), "data": [b"\0a\0"] * (5 * row_pool.CHUNK - 7)})


def squares() -> row_pool.Work:
    return lambda rows: pa.table({"square": [v * v for v in rows["value"].to_pylist()], "data": rows["data"]})


def broken_model() -> row_pool.Work:
    raise DataError("where", "what: {}", "fix")


def broken_row() -> row_pool.Work:
    def work(rows: pa.Table) -> pa.Table:
        if rows["value"][0].as_py() >= 2 * row_pool.CHUNK:
            raise DataError(str(rows["value"][0].as_py()), "is bad")
        return rows

    return work


@pytest.mark.usefixtures("ray_cluster")
def test_results_stand_in_the_order_of_the_rows() -> None:
    with PlainReporter().task("squares", len(ROWS)) as task:
        out = row_pool.run(squares, ROWS, RESOURCES, "cpu", task)
        assert task.done == len(ROWS)
    np.testing.assert_array_equal(out["square"].to_numpy(), np.arange(len(ROWS)) ** 2)
    assert set(out["data"].to_pylist()) == {b"\0a\0"}


@pytest.mark.parametrize(
    ("make", "where", "what"), [(broken_model, "where", "what: {}"), (broken_row, "512", "is bad")]
)
@pytest.mark.usefixtures("ray_cluster")
def test_errors_come_back_as_themselves(make: row_pool.Make, where: str, what: str) -> None:
    with pytest.raises(DataError) as caught, PlainReporter().task("broken", len(ROWS)) as task:
        row_pool.run(make, ROWS.slice(0, 3 * row_pool.CHUNK), RESOURCES, "cpu", task)
    assert (caught.value.where, caught.value.what) == (where, what)


def test_workers_use_the_threads_that_are_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        worker = row_pool.ConditionActor(squares, threads=before + 2)
        out = worker(pa.table({"start": [0], "rows": [row_pool.packed(ROWS.slice(0, 3))]}))
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)
    assert row_pool.unpacked(out["rows"][0].as_py())["square"].to_pylist() == [0, 1, 4]


@pytest.mark.usefixtures("ray_cluster")
def test_work_without_a_model_stays_on_the_cpu() -> None:
    assert row_pool.device(ResourcesSpec(device="cuda"), needs_model=False) == "cpu"
    assert row_pool.device(RESOURCES, needs_model=True) == "cpu"
