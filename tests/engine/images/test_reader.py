"""Pixels read again: the right ones, in the right order, and never others than were catalogued."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from engine.errors import DataError
from engine.images.image_reader import Reader
from engine.images.inspection import inspect, places_table
from engine.images.listing import Listing
from engine.spec import RunSpec, validate
from tests.support.images import picture, plain_folder, save


def catalogued(spec: RunSpec) -> pa.Table:
    """Facts about all images of a source, as the catalog has them, without Ray."""
    listing = Listing(spec)
    tables = [inspect(places_table(group), listing.sets, spec.images) for group in listing.groups()]
    return pa.concat_tables(tables)


def spec_of(source: dict[str, object], **images: object) -> RunSpec:
    return validate({"name": "t", "source": source, "images": {"size": 16, **images}})


def write_tar(path: Path, images: list[np.ndarray]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, pixels in enumerate(images):
            for extension, data in (("png", save(Image.fromarray(pixels), "PNG")), ("cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def sources(tmp_path: Path, images: list[np.ndarray]) -> dict[str, dict[str, object]]:
    import pyarrow.parquet as pq

    write_tar(tmp_path / "x.tar", images)
    column = [{"bytes": save(Image.fromarray(pixels), "PNG"), "path": ""} for pixels in images]
    pq.write_table(
        pa.table({"image": column, "label": [i % 2 for i in range(len(images))]}),
        tmp_path / "x.parquet",
        row_group_size=4,
    )
    for i, pixels in enumerate(images):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(Image.fromarray(pixels), "PNG"))
    return {
        "webdataset": {"kind": "webdataset", "path": str(tmp_path / "x.tar")},
        "parquet": {"kind": "parquet", "path": str(tmp_path / "x.parquet")},
        "folder": {"kind": "folder", "path": str(tmp_path / "set")},
    }


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "folder"])
def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, kind: str) -> None:
    images = [picture(np.random.default_rng(i), 16, 16) for i in range(11)]
    spec = spec_of(sources(tmp_path, images)[kind])
    table = catalogued(spec).sort_by("key")
    if kind == "folder":
        table = table.take(sorted(range(11), key=lambda i: table["key"][i].as_py()[2:]))
    order = [*np.random.default_rng(0).permutation(11).tolist(), 3, 3]
    made = Reader(spec).pixels(table.take(order))
    assert made.dtype == np.uint8
    assert np.array_equal(made, np.stack([images[i] for i in order]))
    assert Reader(spec).pixels(table.slice(0, 0)).shape == (0, 16, 16, 3)


def test_digits_are_scaled_and_grey() -> None:
    spec = validate({"name": "t", "source": {"kind": "digits"}, "images": {"size": 8}})
    table = catalogued(spec).sort_by("key")
    made = Reader(spec).pixels(table)
    expected = load_digits().images * (255 / 16)
    assert np.abs(made - expected[..., None]).max() <= 0.5


def test_other_sizes_are_fitted(tmp_path: Path) -> None:
    path = plain_folder(tmp_path / "set", per_class=2, size=40)
    for fit in ("crop", "pad", "stretch"):
        spec = spec_of({"kind": "folder", "path": str(path)}, fit=fit)
        assert Reader(spec).pixels(catalogued(spec)).shape == (4, 16, 16, 3)


def test_test_images_come_from_the_test_set(tmp_path: Path) -> None:
    main, test = plain_folder(tmp_path / "set", per_class=2), plain_folder(tmp_path / "test", per_class=2, seed=1)
    spec = spec_of({"kind": "folder", "path": str(main), "test_path": str(test)})
    table = catalogued(spec).sort_by("key")
    keys = table["key"].to_pylist()
    made = Reader(spec).pixels(table)
    for i, key in enumerate(keys):
        path = test / key.removeprefix("test:") if key.startswith("test:") else main / key
        assert np.array_equal(made[i], np.asarray(Image.open(path)))
    assert sum(key.startswith("test:") for key in keys) == 4


def test_a_changed_or_missing_image_is_an_error(tmp_path: Path) -> None:
    path = plain_folder(tmp_path / "set", per_class=2)
    spec = spec_of({"kind": "folder", "path": str(path)})
    table = catalogued(spec)
    (path / "a/0000.png").write_bytes((path / "a/0001.png").read_bytes())
    with pytest.raises(DataError, match=r"a/0000.png: has changed since it was catalogued"):
        Reader(spec).pixels(table)
    (path / "a/0000.png").unlink()
    with pytest.raises(DataError, match=r"a/0000.png: cannot be read any more \(unreadable"):
        Reader(spec).pixels(table)
