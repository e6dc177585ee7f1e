"""Samples come back as they went in, from sealed shards only; hostile contents are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import DataError
from engine.shards.manifest import SEAL
from engine.shards.names import tar_path
from engine.shards.shard_reader import read_samples, samples
from engine.storage.store import open_store
from tests.support.sealed import files, make_output, picture

GIVEN_UP = (3, 10, 11, 12, 13, 14)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A sealed output of 17 samples."""
    make_output(open_store(tmp_path / "out"), given_up=GIVEN_UP)
    return tmp_path / "out"


def test_samples_come_back_in_order(output: Path) -> None:
    kept = [index for index in range(23) if index not in GIVEN_UP]
    for source in (output, str(output), open_store(output)):
        found = list(samples(source))
        assert [sample.key for sample in found] == [f"toy-{index:012d}" for index in kept]
    for index, (_, image, extension, label, meta) in zip(kept, found, strict=True):
        assert extension == "png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), picture(index))
        assert label == index % 10
        assert meta == {"index": index, "label": index % 10, "prompt": f"photo of {index % 10}"}


def test_chosen_shards_only(output: Path) -> None:
    assert [sample.meta["index"] for sample in samples(output, shards=[4, 0])] == [20, 21, 22, 0, 1, 2, 4]


def test_an_unfinished_output_is_not_read(output: Path) -> None:
    (output / SEAL).unlink()
    with pytest.raises(DataError, match="not finished"):
        next(samples(output))


def test_no_sample_of_a_changed_shard_is_given_out(output: Path) -> None:
    path = output / tar_path("toy-000001")
    data = bytearray(path.read_bytes())
    data[-11_000] ^= 1
    path.write_bytes(data)
    reading = samples(output)
    assert [next(reading).meta["index"] for _ in range(4)] == [0, 1, 2, 4]
    with pytest.raises(DataError, match=r"toy-000001\.tar: is not the shard that the manifest lists"):
        next(reading)
    path.unlink()
    with pytest.raises(DataError, match=r"toy-000001\.tar: is missing"):
        list(samples(output))


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a.cls": b"1"}, "has 0 images"),
        ({"a.png": b"", "a.jpg": b""}, "has 2 images"),
        ({"a.png": b"", "a.cls": b"-1"}, "label"),
        ({"a.png": b"", "a.cls": b"1.5"}, "label"),
        ({"a.png": b"", "a.cls": b""}, "label"),
        ({"a.png": b"", "a.cls": b"1" * 10}, "label"),
        ({"a.png": b"", "a.cls": b" " * 10**6 + b"1"}, "label"),
        ({"a.png": b"", "a.json": b"{"}, "metadata"),
        ({"a.png": b"", "a.json": b"[]"}, "metadata"),
        ({"a.png": b"", "a.json": b'{"x": NaN}'}, "metadata"),
        ({"a.png": b"", "a.json": b'{"x":' * 10**5}, "metadata"),
        ({"a.png": b"", "a.json": b"\xff\xfe"}, "metadata"),
        ({"a.png": b"", "a.json": b'{"x": "' + b"x" * 2**20 + b'"}'}, "metadata"),
        ({"a.png": b"", "a.pkl": b"cos\nsystem\n(S'true'\ntR."}, r"extension \.pkl"),
        ({"../a.png": b""}, "unsafe name"),
    ],
)
def test_hostile_samples_are_refused(members: dict[str, bytes], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        list(read_samples(pack(members), "t.tar"))
    assert str(caught.value).startswith("t.tar, ")


def test_labels_and_metadata_may_be_absent() -> None:
    (sample,) = read_samples(pack({"a.jpg": b"J", "a.txt": b"caption"}), "t.tar")
    assert sample == ("a", b"J", "jpg", None, {})
    (sample,) = read_samples(pack({"a.png": files(3)["png"], "a.cls": b" 7\n"}), "t.tar")
    assert sample.label == 7
