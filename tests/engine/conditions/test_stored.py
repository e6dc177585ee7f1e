"""Stored tables know what they were made from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.conditions import stored
from engine.conditions.stored import FEATURES, PLAN
from engine.errors import DataError
from engine.storage.store import Store, open_store

TABLE = pa.table({"key": ["a", "b"]})
OLD, NEW = {"model": "1", "catalog": "c"}, {"model": "2", "catalog": "c"}
OTHER = "conditions/other.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path))
    stored.publish(store, FEATURES, TABLE, OLD, note="x")
    stored.publish(store, OTHER, TABLE, OLD)
    return store


def test_facts_travel_with_the_table(store: Store) -> None:
    table, about = stored.read(store, FEATURES)
    assert table["key"].to_pylist() == ["a", "b"]
    assert about == {"made_from": OLD, "note": "x"}
    assert stored.facts(store, "conditions/absent.parquet") is None


def test_the_same_inputs_are_current(store: Store) -> None:
    assert stored.is_current(store, (FEATURES, OTHER), dict(reversed(OLD.items())))
    assert store.exists(OTHER)


def test_other_inputs_are_redone_while_nothing_was_generated(store: Store) -> None:
    assert not stored.is_current(store, (FEATURES, OTHER), NEW)
    assert not store.exists(FEATURES)
    assert not store.exists(OTHER)


def test_other_inputs_are_refused_after_that(store: Store) -> None:
    store.create(PLAN, b"{}")
    with pytest.raises(DataError, match=r"made from other inputs \(model: '1' -> '2'\); use a new output"):
        stored.is_current(store, (FEATURES, OTHER), NEW)
    assert store.exists(FEATURES)
    assert stored.is_current(store, (FEATURES, OTHER), OLD)


def test_a_leftover_of_an_absent_first_file_is_removed(store: Store) -> None:
    store.remove(FEATURES)
    assert not stored.is_current(store, (FEATURES, OTHER), OLD)
    assert not store.exists(OTHER)


def test_a_table_of_another_program_is_an_error(store: Store, tmp_path: Path) -> None:
    store.replace(FEATURES, b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        stored.is_current(store, (FEATURES,), OLD)


@given(rows=st.integers(0, 5), width=st.integers(0, 4), cut=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_matrices_survive_as_lists(rows: int, width: int, cut: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    column = pa.chunked_array([stored.as_lists(matrix[:cut]), stored.as_lists(matrix[cut:])])
    if rows and width:
        np.testing.assert_array_equal(stored.as_matrix(column), matrix)
    assert len(stored.as_matrix(column)) == rows
