"""Labels of metadata files: those that Hugging Face's own imagefolder loader reads, and faults in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.errors import ConfigError, DataError, MimeoError
from engine.images.sources import ImageSource, Ref, open_sets
from engine.spec.recipe import FolderSource, ImagesSpec
from tests.support import s3
from tests.support.buckets import upload
from tests.support.images import picture, save

RNG = np.random.default_rng(3)
NAMES = [f"deep/{i}.png" if i % 3 else f"{i}.png" for i in range(12)]
LABELS = [("moss, green", "fern", "010")[i % 3] for i in range(12)]


def pictures(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(save(Image.fromarray(picture(RNG, 12, 12)), "PNG"))


def write(root: Path, kind: str, names: list[str], labels: list, column: str = "label") -> Path:
    path = root / f"metadata.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text", column), *zip(names, names, labels, strict=True)])
    elif kind == "jsonl":
        rows = [{column: label, "file_name": name} for name, label in zip(names, labels, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pq.write_table(pa.table({"file_name": names, column: labels}), path)
    return path


def source(root: Path | str, **more: object) -> dict[str, ImageSource]:
    return dict(open_sets(FolderSource(kind="folder", path=str(root), **more), ImagesSpec(size=32)))


def found(made: ImageSource) -> dict[str, object]:
    made.check()
    entries = [entry for group in made.scan() for entry in group]
    return {entry.key: entry.label if isinstance(entry, Ref) else entry.reason for entry in entries}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_are_those_that_datasets_reads(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    pictures(root, NAMES)
    write(root, kind, NAMES, LABELS)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=str(tmp_path / "cache"))
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    expected = {str(Path(row["image"]["path"]).relative_to(root)): row["label"] for row in theirs}
    if kind == "csv":  # their reader makes the number 10 of the text 010
        expected = {name: {"10": "010"}.get(str(label), label) for name, label in expected.items()}
    made = source(root)[""]
    assert found(made) == expected == dict(zip(NAMES, LABELS, strict=True))
    refs = [entry for group in made.scan() for entry in group]
    read = dict(made.read([ref.place for ref in refs]))
    assert {ref.key: read[i] for i, ref in enumerate(refs)} == {name: (root / name).read_bytes() for name in NAMES}


def test_a_store_gives_the_same(tmp_path: Path, s3_endpoint: str) -> None:
    with s3.environment(s3_endpoint):
        for kind in ("csv", "parquet"):
            root = tmp_path / kind
            pictures(root, [*NAMES, "extra.png", "odd.png/inner.png"])
            write(root, kind, [*NAMES, "gone.png"], [*LABELS, "fern"])
            url = upload(root, f"s3://{s3.make_bucket(s3_endpoint)}/set")
            with pytest.raises(DataError, match="and there are class folders"):
                found(source(url)[""])
            local = found(source(root, label_column="label")[""])
            assert found(source(url, label_column="label")[""]) == local
            assert (local["gone.png"], local["extra.png"], local["odd.png"]) == ("unreadable", "no_label", "no_label")
            assert len(local) == len(NAMES) + 3


def test_numbers_and_chosen_names(tmp_path: Path) -> None:
    pictures(tmp_path / "a", NAMES[:4])
    write(tmp_path / "a", "csv", NAMES[:4], [0, 1, 1, 0])
    assert list(found(source(tmp_path / "a")[""]).values()).count("1") == 2
    made = source(tmp_path / "a", class_names=["cat", "dog"])[""]
    assert found(made) == dict(zip(NAMES, [0, 1, 1, 0], strict=False))
    assert made.class_names == ("cat", "dog")
    pictures(tmp_path / "b", NAMES[:4])
    features = datasets.Features(
        {"file_name": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    table = datasets.Dataset.from_dict({"file_name": NAMES[:4], "label": [1, 0, 0, 1]}, features)
    table.to_parquet(tmp_path / "b/metadata.parquet")
    assert found(source(tmp_path / "b")[""]) == dict(zip(NAMES, "yxxy", strict=False))


def test_another_column_and_a_test_set(tmp_path: Path) -> None:
    for part in ("main", "test"):
        pictures(tmp_path / part, NAMES[:4])
        write(tmp_path / part, "jsonl", NAMES[:4], ["cat", "dog", "dog", "cat"], "species")
    with pytest.raises(
        DataError, match=r"no column 'label'; set source.label_column to that of the labels: species, file"
    ):
        source(tmp_path / "main")
    with pytest.raises(ConfigError, match="did you mean species"):
        source(tmp_path / "main", label_column="specie")
    made = source(tmp_path / "main", label_column="species", test_path=str(tmp_path / "test"))
    assert found(made["test"]) == found(made[""]) == dict(zip(NAMES, ["cat", "dog", "dog", "cat"], strict=False))


def test_a_test_set_below_the_main_one_is_no_part_of_it(tmp_path: Path) -> None:
    pictures(tmp_path, [*NAMES[:4], *(f"held/{name}" for name in NAMES[:4])])
    write(tmp_path, "csv", NAMES[:4], ["cat", "dog", "dog", "cat"])
    write(tmp_path / "held", "csv", NAMES[:4], ["dog", "dog", "cat", "cat"])
    made = source(tmp_path, test_path=str(tmp_path / "held"))
    assert found(made[""]) == dict(zip(NAMES, ["cat", "dog", "dog", "cat"], strict=False))
    assert found(made["test"]) == dict(zip(NAMES, ["dog", "dog", "cat", "cat"], strict=False))


def test_labels_that_contradict_class_folders_are_refused(tmp_path: Path) -> None:
    names = ["cat/0.png", "cat/1.png", "dog/0.png"]
    pictures(tmp_path, names)
    write(tmp_path, "csv", names, ["cat", "cat", "dog"])
    assert found(source(tmp_path)[""]) == {name: name[:3] for name in names}
    write(tmp_path, "csv", names, ["day", "night", "day"])
    with pytest.raises(
        DataError, match=r"set source\.label_column to label to take the labels from it, or take it out"
    ):
        found(source(tmp_path)[""])
    assert found(source(tmp_path, label_column="label")[""]) == dict(zip(names, ["day", "night", "day"], strict=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file,label\n0.png,a\n", "no column file_name"),
        ("metadata.csv", "", "no column file_name"),
        ("metadata.csv", "file_name,label\n0.png,a\n./0.png,b\n", "gives 0.png two labels"),
        ("metadata.csv", "file_name,label\n,a\n", "a row has no file_name"),
        ("metadata.csv", b"file_name,label\n0.png,\xff\n", "no readable metadata file"),
        ("metadata.csv", b"file_name,label\n0.png," + b"a" * 200_000, "no readable metadata file"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "a"}\n[1]\n', "a line is no object"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "a"}\n{"fi', "no readable metadata file"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "a", "x": "' + "x" * (1 << 20) + '"}', "a line of over"),
        ("metadata.parquet", "PAR1", "no readable metadata file"),
    ],
)
def test_broken_files_are_one_line(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["0.png"])
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MimeoError, match=message) as caught:
        found(source(tmp_path)[""])
    assert caught.value.exit_code in (2, 3)
    assert len(str(caught.value)) < 500
    write(tmp_path, "csv" if name != "metadata.csv" else "jsonl", ["0.png"], ["a"])
    with pytest.raises(DataError, match="keep one of them"):
        source(tmp_path)
