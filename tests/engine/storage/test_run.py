"""The claim on an output: first writer, same run, changed recipe, other run, foreign files, broken recipe."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError, DataError, OutputInUseError, StorageError
from engine.spec import RunSpec, plain, validate
from engine.spec import yaml as strict_yaml
from engine.storage.claim import SPEC, claim, is_output, read_spec, to_yaml
from engine.storage.lock import hold
from engine.storage.store import Store, open_store


def make(**changes: Any) -> RunSpec:
    return validate({"name": "toy", "source": {"kind": "digits"}, **changes})


def test_the_first_run_writes_and_later_ones_agree(store: Store) -> None:
    claim(store, make())
    written = store.read(SPEC)
    claim(store, make())
    claim(store, make(resources={"actors": 4, "batch_size": 7}))
    assert store.read(SPEC) == written
    assert read_spec(store) == make()
    assert [entry.name for entry in store.list()] == [SPEC]


def test_files_of_operating_systems_are_nothing(store: Store) -> None:
    for name in (".DS_Store", "data/._x-000000.tar", "Thumbs.db", "data/desktop.ini", "$RECYCLE.BIN/x"):
        store.create(name, b"x")
    claim(store, make())
    assert [entry.name for entry in store.list()] == [SPEC]
    store.create("thesis.txt", b"x")
    assert [entry.name for entry in store.list()] == [SPEC, "thesis.txt"]


def test_outputs_are_known_by_their_recipe(tmp_path: Path) -> None:
    assert not is_output(tmp_path)
    (tmp_path / SPEC).write_text("name: somebody's\n")
    assert not is_output(tmp_path)
    (tmp_path / SPEC).unlink()
    claim(open_store(tmp_path), make())
    assert is_output(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / SPEC).unlink()
    (tmp_path / SPEC).symlink_to("pipe")
    assert not is_output(tmp_path)


def test_a_changed_recipe_is_refused_with_its_keys(store: Store) -> None:
    claim(store, make(generate={"count": 1000}))
    store.create("catalog/catalog.parquet", b"begun")
    with pytest.raises(ConfigError, match=r"generate\.count: 1000 -> 2000; ") as caught:
        claim(store, make(generate={"count": 2000}))
    assert caught.value.exit_code == 2
    many = {"count": 1, "shard_size": 2, "quality": 3, "guidance_scale": 4, "num_inference_steps": 5, "format": "jpg"}
    with pytest.raises(ConfigError, match=r"and 2 more") as caught:
        claim(store, make(seed=1, generate=many))
    assert str(caught.value).count(" -> ") == 5
    assert read_spec(store) == make(generate={"count": 1000})


def test_a_corrected_recipe_takes_an_output_that_was_not_begun(store: Store) -> None:
    claim(store, make())
    claim(store, make(seed=1))
    assert read_spec(store) == make()  # only the holder of the lock may replace it
    claim(store, make(seed=1), held=True)
    assert read_spec(store) == make(seed=1)


def test_a_run_of_another_name_is_refused(store: Store) -> None:
    claim(store, make())
    store.create("catalog/catalog.parquet", b"begun")
    with pytest.raises(OutputInUseError, match="holds the run 'toy', not 'other'") as caught:
        claim(store, make(name="other"))
    assert caught.value.exit_code == 5


def test_a_folder_of_somebody_else_is_left_alone(store: Store) -> None:
    store.create("photos/holiday.jpg", b"x")
    with pytest.raises(OutputInUseError, match=r"not empty.*photos/holiday\.jpg"):
        claim(store, make())
    assert [entry.name for entry in store.list()] == ["photos/holiday.jpg"]
    with pytest.raises(DataError, match="holds no run"):
        read_spec(store)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"name: toy",
        b"\xff\xfe",
        b"- a\n",
        b"name: [",
        b"name: toy\nsource: {kind: digits}\nfuture: 1\n",
        b"a: &x 1",
    ],
)
def test_a_broken_recipe_is_a_data_error(store: Store, text: bytes) -> None:
    store.create(SPEC, text)
    for use in (lambda: claim(store, make()), lambda: read_spec(store)):
        with pytest.raises(DataError, match=r"spec\.yaml") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert store.read(SPEC) == text


def test_a_recipe_that_was_cut_anywhere_is_a_data_error(store: Store) -> None:
    whole = to_yaml(make()).encode()
    ends = [k for k in range(len(whole)) if whole[k : k + 1] == b"\n"]
    for end in (0, *ends[:: max(1, len(ends) // 40)], len(whole) - 1):
        store.replace(SPEC, whole[:end])
        with pytest.raises(DataError):
            read_spec(store)
    store.replace(SPEC, whole)
    assert read_spec(store) == make()


def test_of_two_runs_in_the_same_instant_one_claims(tmp_path: Path) -> None:
    for number in range(5):
        store = open_store(tmp_path / str(number))

        def attempt(seed: int, store: Store = store) -> int | None:
            try:
                claim(store, make(seed=seed))
                with hold(store, "test"):
                    claim(store, make(seed=seed), held=True)
                    store.create("catalog/catalog.parquet", str(seed).encode())
            except (ConfigError, OutputInUseError):
                return None
            return seed

        with ThreadPoolExecutor(4) as pool:
            winners = [seed for seed in pool.map(attempt, range(4)) if seed is not None]
        assert winners == [read_spec(store).seed]
        assert store.read("catalog/catalog.parquet") == str(winners[0]).encode()


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        claim(open_store(tmp_path / "file" / "out"), make())


tricky = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30),
    st.sampled_from(
        [
            "1e9",
            "0x10",
            "010",
            "12:30",
            "no",
            "yes",
            "null",
            "~",
            "1_000",
            ".nan",
            "2024-01-01",
            "=",
            "<<",
            "- a",
            "a: b",
        ]
    ),
    st.from_regex(r"[-+]?[0-9._e:xob]{1,8}", fullmatch=True),
)


@settings(max_examples=50, deadline=None)
@given(tricky, st.floats(0, 50), st.floats(1e-300, 1, exclude_min=True), st.integers(0, 2**63 - 1))
def test_every_reader_of_yaml_reads_the_same_recipe(text: str, guidance: float, lr: float, seed: int) -> None:
    spec = make(
        seed=seed,
        generate={"negative_prompt": text, "guidance_scale": guidance},
        judge={"lr": lr},
        source={"kind": "folder", "path": text},
    )
    written = to_yaml(spec)
    assert validate(strict_yaml.parse(written, "test")) == spec
    assert yaml.safe_load(written) == plain(spec)
