"""Stock readers take our shards as they are: tarfile, webdataset, timm, datasets, open_clip; quarantined entries and
all."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.shards import records
from engine.shards.indexes import ShardSize, build
from engine.storage.store import open_store
from tests.support.sealed import files, make_output, picture

COUNT = 23
GIVEN_UP = (3, 10, 11, 12, 13, 14)


@pytest.fixture(scope="module", params=[(), GIVEN_UP], ids=["plain", "quarantined"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The data folder of a sealed output, and the indices of its samples; shard 2 of the second has no sample at
    all."""
    root = tmp_path_factory.mktemp("indexes") / "out"
    make_output(open_store(root), COUNT, given_up=request.param)
    return root / "data", [index for index in range(COUNT) if index not in request.param]


def same(image: Image.Image, index: int) -> bool:
    return np.array_equal(np.asarray(image), picture(index))


def test_tarfile_and_tar_list_the_members(data: tuple[Path, list[int]]) -> None:
    folder, kept = data
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
        listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert [name for name in listed.stdout.split() if not name.endswith("/")] == list(members)
        assert listed.stderr == ""
        found |= members
    expected = {f"toy-{i:012d}.{extension}": content for i in kept for extension, content in files(i).items()}
    assert found == expected


def test_webdataset_reads_every_sample(data: tuple[Path, list[int]]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    folder, kept = data
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == [f"toy-{index:012d}" for index in kept]
    assert [sample["cls"] for sample in found] == [index % 10 for index in kept]
    assert [sample["json"]["index"] for sample in found] == kept
    assert all(np.array_equal(s["png"], picture(i)) for s, i in zip(found, kept, strict=True))


def test_timm_reads_every_sample(data: tuple[Path, list[int]]) -> None:
    timm_data = pytest.importorskip("timm.data", reason="timm is not installed")
    folder, kept = data
    dataset = timm_data.create_dataset("wds/toy", root=str(folder), split="train", is_training=False)
    assert len(dataset) == len(kept)
    found = list(dataset)
    assert [label for _, label in found] == [index % 10 for index in kept]
    assert all(same(image, index) for (image, _), index in zip(found, kept, strict=True))
    training = timm_data.create_dataset("wds/toy", root=str(folder), split="train", is_training=True, batch_size=4)
    assert len(training) >= len(kept)
    assert {label for _, label in training} <= set(range(10))


def test_datasets_reads_every_sample(data: tuple[Path, list[int]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    folder, kept = data
    files_ = sorted(str(path) for path in folder.glob("*.tar"))
    options = {"data_files": {"train": files_}, "split": "train", "cache_dir": str(tmp_path)}
    for streaming in (True, False):
        found = list(datasets.load_dataset("webdataset", streaming=streaming, **options))
        assert [sample["__key__"] for sample in found] == [f"toy-{index:012d}" for index in kept]
        assert [int(sample["cls"]) for sample in found] == [index % 10 for index in kept]
        assert all(same(sample["png"], index) for sample, index in zip(found, kept, strict=True))


def test_open_clip_knows_the_size(data: tuple[Path, list[int]]) -> None:
    module = pytest.importorskip("open_clip_train.data", reason="open_clip_train is not installed")
    folder, kept = data
    assert module.get_dataset_size(str(folder / "toy-{000000..000004}.tar")) == (len(kept), 5)


def test_wids_index_lists_what_is_there(data: tuple[Path, list[int]]) -> None:
    folder, kept = data
    index = json.loads((folder / "index.json").read_text())
    assert (index["__kind__"], index["wids_version"], index["name"]) == ("wids-shard-index-v1", 1, "toy")
    assert [entry["url"] for entry in index["shardlist"]] == [path.name for path in sorted(folder.glob("*.tar"))]
    for entry in index["shardlist"]:
        path = folder / entry["url"]
        assert entry["filesize"] == path.stat().st_size
        with tarfile.open(path) as tar:
            assert entry["nsamples"] == sum(name.endswith(".cls") for name in tar.getnames())
    assert sum(entry["nsamples"] for entry in index["shardlist"]) == len(kept)


def test_indexes_agree_with_the_records(data: tuple[Path, list[int]]) -> None:
    folder, _ = data
    store = open_store(folder.parent)
    rows = [records.load(store, f"toy-{k:06d}") for k in range(5)]
    sizes = [ShardSize(f"{row.shard}.tar", row.count, row.bytes) for row in rows if row is not None]
    for name, text in build("toy", sizes).items():
        assert store.read(name) == text
    info = json.loads(store.read("data/_info.json"))["splits"]["train"]
    assert dict(zip(info["filenames"], info["shard_lengths"], strict=True)) == json.loads(store.read("data/sizes.json"))
