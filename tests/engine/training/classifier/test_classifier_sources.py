"""Further outputs: the union of replicates, and what is refused in one line; no Ray, catalogs are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import MimeoError
from engine.images import catalog as catalogs
from engine.images.arrangement import SCHEMA
from engine.images.catalog import Catalog
from engine.images.columns import to_parquet
from engine.spec import RunSpec
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from engine.training.classifier import training_sets
from tests.support.synthetic import digits_spec, noisy_digits, write_shards

NAMES = tuple("0123456789")


def written(store: Store, names: tuple[str, ...] = NAMES, *, shift: int = 0) -> Catalog:
    """A catalog of 30 training and 10 test rows; `shift` moves what the test rows show."""
    rows = []
    for number in range(40):
        row = dict.fromkeys(SCHEMA.names)
        split, content = ("train", number) if number < 30 else ("test", number + shift)
        rows.append(
            row | {"key": f"{number:04d}", "label": number % 10, "split": split, "pixels_sha256": f"{content:064x}"}
        )
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    made = Catalog(table, names, 0, catalogs.table_digest(table))
    store.replace(catalogs.TABLE, to_parquet(table, SCHEMA))
    done = {"class_names": list(names), "digest": made.digest, "quarantined": 0}
    store.replace(catalogs.DONE, json.dumps(done).encode())
    return made


def output(folder: Path, names: tuple[str, ...] = NAMES, **sections: Any) -> tuple[RunSpec, Store, Catalog]:
    """A sealed output with a hand-written catalog."""
    spec, store = digits_spec(**sections), open_store(str(folder))
    claim(store, spec)
    made = written(store, names)
    pixels, labels = noisy_digits(spec.generate.count, spec.images.size)
    write_shards(store, spec, pixels, labels, NAMES)
    return spec, store, made


def asked(tmp_path: Path, **train: Any) -> RunSpec:
    return digits_spec(train={"synthetic": [str(tmp_path / "b")], **train})


def further(spec: RunSpec, store: Store, real: Catalog) -> list[training_sets.Source]:
    """Both checks, as the verb makes them."""
    assert spec.train is not None
    training_sets.precheck(spec, spec.train, store.url)
    return training_sets.further(spec.train, real)


def test_the_union_counts_on_from_output_to_output(tmp_path: Path) -> None:
    spec, store, real = output(tmp_path / "a")
    output(tmp_path / "b", seed=1)
    spec = asked(tmp_path)
    found = [training_sets.own(spec, store), *further(spec, store, real)]
    assert [source.planned for source in found] == [120, 120]
    requests = training_sets.requests("synthetic", found, 150, real.class_names)
    assert [(r.pieces, r.below, r.offset) for r in requests] == [
        (((0,), (1,), (2,)), 120, 0),
        (((0,),), 30, 120),
    ]
    assert found[0].digest != found[1].digest
    assert len(training_sets.requests("synthetic", found, 60, real.class_names)) == 1


@pytest.mark.parametrize(
    ("other", "error"),
    [
        ({"seed": 0}, "holds the same samples as this run"),
        ({"seed": 1, "images": {"size": 16}}, "has images of 16 px, this run of 8 px"),
        ({"seed": 1, "generate": {"format": "jpg"}}, "is encoded as jpg 95, this run as png"),
        ({"seed": 1, "names": (*NAMES[:9], "ten")}, "its classes are not the real ones: has 'ten', lacks '9'"),
        ({"seed": 1, "shift": -20}, "was trained on 10 images of this run's validation or test split"),
        (None, "is not an output of mimeo"),
    ],
)
def test_outputs_of_another_kind_are_refused(tmp_path: Path, other: dict[str, Any] | None, error: str) -> None:
    _, store, real = output(tmp_path / "a")
    if other is not None:
        names, shift = other.pop("names", NAMES), other.pop("shift", 0)
        output(tmp_path / "b", names, **other)
        real = written(store, shift=shift)
    spec = asked(tmp_path)
    with pytest.raises(MimeoError) as caught:
        further(spec, store, real)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_own_output_must_be_this_specs_and_is_not_given_twice(tmp_path: Path) -> None:
    _, store, _ = output(tmp_path / "b")
    spec = asked(tmp_path)
    assert spec.train is not None
    with pytest.raises(MimeoError, match="is given twice, or is this run's own output"):
        training_sets.precheck(spec, spec.train, store.url)
    with pytest.raises(MimeoError, match="holds the samples of another spec"):
        training_sets.own(digits_spec(seed=5), store)
