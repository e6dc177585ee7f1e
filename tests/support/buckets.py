"""Local data sets, and copies of them in a bucket that are made without the engine."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import savemat

from tests.support.images import mixed_folder
from tests.support.s3 import CREDENTIALS


def upload(folder: Path, url: str) -> str:
    """Copy every regular file of a folder below a URL, with boto3; returns the URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    keys = {key.lower(): value for key, value in CREDENTIALS.items() if key != "AWS_DEFAULT_REGION"}
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return url


def make_sets(root: Path) -> dict[str, dict[str, Any]]:
    """A folder, tars, Parquet and files of MedMNIST's and USPS's layouts; the first three of real image files below
    `root`; source sections with relative paths."""
    made = mixed_folder(root / "folder", per_class=12, bad=0.0)
    classes = sorted({name.partition("/")[0] for name in made.good})
    for path in list(root.rglob("*.*")):  # names that a store and a disk may spell differently
        odd = "ü %41:" if path.name.startswith("001 ") else ""
        path.rename(path.with_name(odd + path.name.replace("\n", " ")))  # moto takes no line ends
    files = sorted(path.relative_to(root / "folder").as_posix() for path in (root / "folder").rglob("*.*"))
    _tars(root, files, classes)
    _parquet(root, files, classes)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 30), ("val", 6), ("test", 12)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8).reshape(n, 1)
    np.savez(root / "x.npz", **arrays)
    grey, digits = rng.integers(0, 256, (40, 256), np.uint8), (np.arange(40) % 10 + 1).astype(np.uint8)
    savemat(root / "usps.mat", {"usps_all": np.concatenate([grey, digits[:, None]], axis=1)})
    return {
        "folder": {"kind": "folder", "path": "folder"},
        "webdataset": {"kind": "webdataset", "path": "tars", "test_path": "more/test-*.tar"},
        "parquet": {"kind": "parquet", "path": "parquet"},
        "usps": {"kind": "usps", "path": "usps.mat"},
        "medmnist": {"kind": "medmnist", "path": "x.npz"},
    }


def placed(section: Mapping[str, Any], base: str) -> dict[str, Any]:
    """A section of `make_sets` whose paths lie below a folder or URL."""
    return {key: f"{base}/{value}" if key.endswith("path") else value for key, value in section.items()}


def _tars(root: Path, files: list[str], classes: list[str]) -> None:
    (root / "tars/deep").mkdir(parents=True)
    (root / "more").mkdir()
    places = ("tars/a-0.tar", "tars/deep/a-1.tar", "more/test-0.tar")
    for number, place in enumerate(places):
        with tarfile.open(root / place, "w") as tar:
            for index, name in enumerate(files[number :: len(places)]):
                path = root / "folder" / name
                label = root / "label"
                label.write_text(str(classes.index(name.partition("/")[0])))
                kind = path.suffix.lower()
                tar.add(path, f"{index:04d}{kind if kind != '.jpe' else '.jpg'}")
                tar.add(label, f"{index:04d}.cls")
    (root / "label").unlink()


def _parquet(root: Path, files: list[str], classes: list[str]) -> None:
    (root / "parquet").mkdir()
    for number in range(2):
        own = files[number::2]
        rows = [{"bytes": (root / "folder" / name).read_bytes(), "path": name} for name in own]
        labels = [classes.index(name.partition("/")[0]) for name in own]
        pq.write_table(pa.table({"image": rows, "label": labels}), root / f"parquet/{number}.parquet", row_group_size=5)
