"""Sources on an object store: the same entries and bytes as from a disk, by ranges, with faults in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from engine.errors import ConfigError, DataError, MimeoError, StorageError
from engine.images.sources import ImageSource, open_sets
from engine.images.sources.overlap import check_output
from engine.spec import validate
from engine.spec.recipe import ImagesSpec, Source
from engine.storage.urls import normalise
from tests.support import s3
from tests.support.buckets import make_sets, placed, upload
from tests.support.publishers import ROOT
from tests.support.s3 import Faults

IMAGES = ImagesSpec(size=32)
KINDS = ("folder", "webdataset", "parquet", "medmnist", "usps")
CATALOGS = """
import json, sys
from engine.cluster.progress import PlainReporter
from engine.cluster.session import session
from engine.images import catalog
from engine.spec import validate
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import open_store
out = {}
with session(ResourcesSpec(device="cpu"), num_cpus=2):
    for name, recipe in json.loads(sys.argv[1]).items():
        store = open_store(f"{sys.argv[2]}/{name}")
        made = catalog.build(validate(recipe), store, PlainReporter())
        out[name] = [made.digest, made.table.num_rows, made.table.drop_columns(["split"]).to_pylist().__repr__()]
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The local sets and their sections."""
    root = tmp_path_factory.mktemp("sets")
    return root, make_sets(root)


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str, data: tuple[Path, dict[str, Any]]) -> Iterator[str]:
    """The same sets in a bucket."""
    with s3.environment(s3_endpoint):
        yield upload(data[0], f"s3://{s3.make_bucket(s3_endpoint)}/some sets")


def opened(section: dict[str, Any]) -> dict[str, ImageSource]:
    return dict(open_sets(TypeAdapter(Source).validate_python(section), IMAGES))


def content(sets: dict[str, ImageSource]) -> dict[str, list[Any]]:
    """Every entry of each set with its bytes, sorted by key."""
    made = {}
    for name, source in sets.items():
        source.check()
        entries = sorted((entry for group in source.scan() for entry in group), key=lambda entry: entry.key)
        read = dict(source.read([entry.place for entry in entries]))
        made[name] = [source.class_names, *((entry, read[i]) for i, entry in enumerate(entries))]
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_entries_and_bytes_are_those_of_the_disk(kind: str, data: tuple[Path, dict[str, Any]], bucket: str) -> None:
    root, sections = data
    remote, local = content(opened(placed(sections[kind], bucket))), content(opened(placed(sections[kind], str(root))))
    assert remote == local
    assert len(local[""]) > 20


def test_files_folders_and_patterns(data: tuple[Path, dict[str, Any]], bucket: str) -> None:
    def names(path: str) -> tuple[str, ...]:
        return opened({"kind": "webdataset", "path": f"{bucket}/{path}"})[""].names  # type: ignore[attr-defined]

    assert names("tars") == names("tars/") == names("tars/**/*.tar") == ("a-0.tar", "deep/a-1.tar")
    assert names("tars/a-0.tar") == names("tars/a-?.tar") == ("a-0.tar",)
    assert names("tars/{a-0,deep/a-1}.tar") == names("tars/{deep/,}a-*.tar") == ("a-0.tar", "deep/a-1.tar")
    with pytest.raises(DataError, match=r"tars/a-1.tar does not exist"):
        names("tars/a-{0..2}.tar")
    for output, inside in (("tars/new", True), ("tars", True), ("tars2", False), ("runs/x", False)):
        recipe = {"name": "x", "images": {"size": 16}, "source": {"kind": "webdataset", "path": f"{bucket}/tars"}}
        with pytest.raises(ConfigError, match=r"inside source\.path") if inside else nullcontext():
            check_output(validate(recipe), f"{bucket}/{output}")


def test_only_columns_and_footers_of_parquet_travel(s3_endpoint: str, s3_url: str, tmp_path: Path) -> None:
    images = [os.urandom(50_000) for _ in range(120)]
    table = pa.table({"image": [{"bytes": data, "path": ""} for data in images], "label": [i % 2 for i in range(120)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    upload(tmp_path, s3_url)
    faults = Faults(part="x.parquet")
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        source = opened({"kind": "parquet", "path": s3_url})[""]
        source.check()
        entries = [entry for group in source.scan() for entry in group]
        labels, faults.sent = faults.sent, 0
        read = dict(source.read([entries[33].place]))
    size = (tmp_path / "x.parquet").stat().st_size
    assert 0 < labels < size / 10
    assert read == {0: images[33]}
    assert 500_000 < faults.sent < size / 8  # one row group of twelve


def test_images_of_a_tar_travel_as_their_ranges(
    s3_endpoint: str, data: tuple[Path, dict[str, Any]], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = data[1]
    source = opened(placed(sections["webdataset"], bucket))[""]
    entries = [entry for group in source.scan() for entry in group]
    faults = Faults(part=".tar")
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        fresh = opened(placed(sections["webdataset"], bucket))[""]
        faults.sent = 0
        places = [entries[0].place, entries[2].place]
        read = dict(fresh.read(places))
        assert faults.sent == places[1].offset + places[1].size - places[0].offset  # near: one request
        monkeypatch.setattr("engine.images.sources.webdataset.GAP", 0)
        faults.sent = 0
        assert dict(fresh.read(places)) == read
        assert faults.sent == places[0].size + places[1].size
        cut = places[0]._replace(size=10**9)
        assert dict(fresh.read([cut]))[0].reason == "truncated"  # type: ignore[union-attr]
    assert [len(read[0]), len(read[1])] == [places[0].size, places[1].size]  # type: ignore[arg-type]


def test_passing_faults_are_retried(s3_endpoint: str, data: tuple[Path, dict[str, Any]], bucket: str) -> None:
    faults = Faults(part="/some%20sets/folder/", refuse=5)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        found = content(opened(placed(data[1]["folder"], bucket)))
    assert faults.refuse == 0
    assert found == content(opened(placed(data[1]["folder"], str(data[0]))))


@pytest.mark.parametrize("kind", KINDS)
def test_absent_places_are_one_line(kind: str, bucket: str) -> None:
    for path in (f"{bucket}/nothing", f"{bucket}/nothing/x.tar", "s3://no-such-bucket-here/x"):
        with pytest.raises((DataError, StorageError), match=r"(nothing|no-such-bucket-here)") as caught:
            opened({"kind": kind, "path": path})[""].check()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_one_line(kind: str, s3_endpoint: str, bucket: str, data: tuple[Path, dict[str, Any]]) -> None:
    faults = Faults(part="", refuse=10**6, status=403)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        with pytest.raises(StorageError, match="check the address, the credentials") as caught:
            opened(placed(data[1][kind], bucket))[""].check()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["s3://key:secret@bucket/x", "ftp://host/x", "s3:/bucket/x", "s3://*/x", "s3://bucket/../x", "s3://b/#*.tar"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_urls_that_are_not_allowed(kind: str, path: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        opened({"kind": kind, "path": path})[""].check()
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, MimeoError)


def test_file_urls_are_local(data: tuple[Path, dict[str, Any]]) -> None:
    root, sections = data
    for kind in KINDS:
        local = content(opened(placed(sections[kind], str(root))))
        assert content(opened(placed(sections[kind], normalise(f"file://{root}")))) == local
        assert content(opened(placed(sections[kind], f"file://{root}"))) == local


@pytest.mark.timeout(600)
def test_catalogs_are_those_of_the_disk(data: tuple[Path, dict[str, Any]], bucket: str, tmp_path: Path) -> None:
    root, sections = data
    recipes = {}
    for kind in KINDS:
        for name, base in (("local", str(root)), ("remote", bucket)):
            recipe = {"name": "sets", "source": placed(sections[kind], base), "images": {"size": 16}}
            test = 0 if kind in ("webdataset", "medmnist") else 0.3
            recipes[f"{kind}-{name}"] = recipe | {"split": {"train": "rest", "test": test}}
    code = [sys.executable, "-c", CATALOGS, json.dumps(recipes), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in KINDS:
        assert found[f"{kind}-remote"] == found[f"{kind}-local"]
        assert found[f"{kind}-local"][1] > 20
