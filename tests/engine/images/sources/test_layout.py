"""Parts of a set taken for classes: trees and file names of real sets, each with the settings that read it right,
followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import DataError
from engine.images.listing import Listing, planned_labels
from engine.images.sources import open_sets
from engine.images.sources.split_folders import check_files, role
from engine.spec import RunSpec, validate
from engine.spec.recipe import FolderSource, ImagesSpec
from tests.support import s3
from tests.support.buckets import upload
from tests.support.images import save

CLASSES = ("lake", "moor", "wood")
PNG = save(Image.new("RGB", (16, 16)), "PNG")


def spec_of(kind: str, path: str, **more: object) -> RunSpec:
    return validate({"name": "t", "source": {"kind": kind, "path": path, **more}, "images": {"size": 16}})


def make(root: Path, *folders: str) -> Path:
    for folder in folders:
        for i in range(3):
            path = root / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PNG)
    return root


def labels(spec: RunSpec) -> dict[str, set[str]]:
    """The classes of each set's images, by the listing."""
    listing = Listing(spec)
    listing.check(spec.split)
    found = [candidate for group in listing.groups() for candidate in group]
    names, numbers = listing.classes()
    return {name: {names[numbers[c.code]] for c in found if c.set == name} for name in listing.sets}


def below(*parts: str) -> list[str]:
    return [f"{part}/{name}" for part in parts for name in CLASSES]


TREES = {
    "words": (below("train", "test"), "train", "test"),
    "a third part": (below("train", "test", "pred"), "train", "test"),
    "prefixes": (below("seg_train", "seg_test"), "seg_train", "seg_test"),
    "twice nested, one part without classes": (
        [*below("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
        "seg_train/seg_train",
        "seg_test/seg_test",
    ),
    "upper case and years": (below("TRAIN2017", "Val2017"), "TRAIN2017", "Val2017"),
    "a test part without classes": ([*below("train"), "test"], "train", None),
    "a part of another name without classes": ([*below("train"), "unlabelled"], "train", None),
    "no words at all": (below("2019", "2020", "2021"), "2019", "2021"),
    "one class is missing": ([*below("fold1"), "fold2/lake", "fold2/moor"], "fold1", "fold2"),
    "one part only": (below("images"), "images", None),
}


@pytest.mark.parametrize("tree", TREES)
def test_parts_are_refused_and_the_settings_read_them_right(tree: str, tmp_path: Path) -> None:
    folders, path, test_path = TREES[tree]
    root = make(tmp_path / "set", *folders)
    with pytest.raises(DataError, match="holds parts of a set") as caught:
        labels(spec_of("folder", str(root)))
    found = re.search(r"set source.path to (\S+?)(?: and source.test_path to (\S+?))?,", str(caught.value))
    assert found is not None
    assert found[1] == str(root / path)
    if test_path is not None and tree != "no words at all":
        assert found[2] == str(root / test_path)
    assert (found[2] is None) == (test_path is None)
    read = labels(spec_of("folder", found[1], **({"test_path": found[2]} if found[2] else {})))
    assert read[""] == set(CLASSES)
    assert all(own <= set(CLASSES) for own in read.values())


def test_a_store_says_the_same(tmp_path: Path, s3_endpoint: str) -> None:
    root = make(tmp_path / "set", *below("train", "test", "pred"))
    with s3.environment(s3_endpoint):
        url = upload(root, f"s3://{s3.make_bucket(s3_endpoint)}/set")
        messages = []
        for place in (str(root), url):
            with pytest.raises(DataError, match="holds parts of a set") as caught:
                labels(spec_of("folder", place))
            messages.append(str(caught.value).replace(place, "SET"))
            read = labels(spec_of("folder", f"{place}/train", test_path=f"{place}/test"))
            assert read == {"": set(CLASSES), "test": set(CLASSES)}
            chosen = {"class_names": ["pred", "train"], "test_path": f"{place}/test"}
            assert labels(spec_of("folder", place, class_names=["pred", "train"])) == {"": {"pred", "train"}}
            with pytest.raises(DataError, match=r"no class of|holds no|no image of"):
                planned_labels(spec_of("folder", place, **chosen))
        assert messages[0] == messages[1]


def test_named_classes_are_classes(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/left", "train/right", "bus/left", "bus/right", "car/left", "car/right")
    with pytest.raises(DataError, match=r"or name the class folders in source\.class_names"):
        labels(spec_of("folder", str(root)))
    assert labels(spec_of("folder", str(root), class_names=["train", "bus"])) == {"": {"train", "bus"}}
    with pytest.raises(DataError, match=r"source.class_names: 'Bus' is no folder of .*did you mean 'bus'"):
        labels(spec_of("folder", str(root), class_names=["train", "Bus"]))


def test_splits_below_classes_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "set", *(f"{name}/{split}" for name in CLASSES for split in ("train", "test")))
    with pytest.raises(DataError, match=r"holds splits \(test, train\) below each class"):
        labels(spec_of("folder", str(root)))


@pytest.mark.parametrize(
    "folders",
    [
        CLASSES,
        ("train", "bus", "car"),
        ("dog/pug", "dog/corgi", "cat/siamese", "cat/manx"),
        ("dog/images", "cat/images"),
        ("dog", "dog/more", "cat", "cat/more"),
        ("dog", "cat/left", "cat/right"),
    ],
)
def test_classes_with_folders_below_them_stay_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    root = make(tmp_path / "set", *folders)
    assert labels(spec_of("folder", str(root)))[""] == {name.split("/")[0] for name in folders}


def test_parts_with_a_metadata_file_each(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "north", "south")
    for part in ("north", "south"):
        (root / part / "metadata.csv").write_text("file_name,label\n0.png,fern\n1.png,moss\n2.png,fern\n")
    with pytest.raises(DataError, match=r"parts of a set \(north, south\).*set source.path to \S+north and"):
        labels(spec_of("folder", str(root)))
    read = labels(spec_of("folder", str(root / "north"), test_path=str(root / "south")))
    assert read == {"": {"fern", "moss"}, "test": {"fern", "moss"}}


def test_a_test_set_inside_the_main_folder_is_no_class(tmp_path: Path) -> None:
    root = make(tmp_path / "set", *CLASSES, *below("held out"))
    read = labels(spec_of("folder", str(root), test_path=str(root / "held out")))
    assert read == {"": set(CLASSES), "test": set(CLASSES)}
    for inner in (root, root / "lake/deep"):
        make(inner, "x")
        with pytest.raises(DataError, match=r"is source\.path or lies inside one of its classes"):
            open_sets(FolderSource(kind="folder", path=str(root), test_path=str(inner)), ImagesSpec(size=16))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seg_train", "train"),
        ("trainA", "train"),
        ("XTrain", "train"),
        ("TRAINING", "train"),
        ("val2017", "validation"),
        ("test-00000-of-00001.parquet", "test"),
        ("trainer", None),
        ("contest", None),
        ("retrain", None),
        ("testimony", None),
    ],
)
def test_words_of_names(name: str, expected: str | None) -> None:
    assert role(name) == expected


FILES = {
    "shards": (["b-train-000.tar", "b-train-001.tar", "b-test-000.tar"], "b-train-*.tar", "b-test-000.tar"),
    "Hugging Face": (
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        "train-*-of-*.parquet",
        "test-00000-of-00001.parquet",
    ),
    "folders": (["train/0.tar", "train/1.tar", "val/0.tar"], "train", "val"),
    "other letters": (["train-a.tar", "train-b.tar", "valid-a.tar", "valid-b.tar"], "train*.tar", "valid*.tar"),
    "one without a word": (["cifar.tar", "cifar-test.tar"], "cifar.tar", "cifar-test.tar"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_several_splits_are_refused_with_patterns_that_fit(case: str, tmp_path: Path) -> None:
    names, *patterns = FILES[case]
    with pytest.raises(DataError, match="files of several splits") as caught:
        check_files(tmp_path, sorted(names), str(tmp_path), "source.path")
    found = re.search(r"set source.path to (\S+) and source.test_path to (\S+)$", str(caught.value))
    assert found is not None
    assert [Path(place).relative_to(tmp_path).as_posix() for place in found.groups()] == patterns
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def fitting(pattern: str) -> Iterator[str]:
        for place in tmp_path.glob(pattern):
            files = place.rglob("*") if place.is_dir() else (place,)
            yield from (file.relative_to(tmp_path).as_posix() for file in files)

    main, test = (set(fitting(pattern)) for pattern in patterns)
    assert main
    assert main | test == set(names)
    assert not main & test


def test_files_that_are_one_split_or_are_named_one_by_one_pass(tmp_path: Path) -> None:
    check_files(tmp_path, ["train-0.tar", "train-1.tar"], "", "source.path")
    check_files(tmp_path, ["a.tar", "b.tar", "jan.tar"], "", "source.path")
    check_files(tmp_path, ["train-0.tar", "val-0.tar"], "/x/{train,val}-0.tar", "source.path")
    with pytest.raises(DataError):
        check_files(tmp_path, ["train-0.tar", "val-0.tar"], "/x/*.tar", "source.path")
