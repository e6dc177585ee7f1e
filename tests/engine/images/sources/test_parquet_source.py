"""Parquet in the Hugging Face layout, as `datasets` and pyarrow write it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.errors import ConfigError, DataError
from engine.images.listing import Listing
from engine.images.sources import Place, Ref, open_sets
from engine.images.sources.parquet import ParquetFiles
from engine.spec import validate
from engine.spec.recipe import ImagesSpec, ParquetSource, SplitSpec
from tests.support.images import picture, save

RNG = np.random.default_rng(6)


def images(n: int) -> list[bytes]:
    return [save(Image.fromarray(picture(RNG, 12, 12)), "PNG") for _ in range(n)]


def source_of(path: Path, **more: object) -> ParquetFiles:
    return open_sets(ParquetSource(kind="parquet", path=str(path), **more), ImagesSpec(size=32))[""]


def entries(source: ParquetFiles) -> list:
    return [entry for group in source.scan() for entry in group]


def write(
    path: Path,
    data: list[bytes | None],
    labels: pa.Array,
    *,
    group: int = 4,
    names: list[str] | None = None,
    plain: bool = False,
) -> Path:
    rows = [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(data, pa.binary()) if plain else pa.array(rows, struct)
    table = pa.table({"image": column, "label": labels})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_a_file_that_datasets_wrote(tmp_path: Path) -> None:
    data = images(9)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": d, "path": None} for d in data], "label": [0, 1] * 4 + [0]}, features
    )
    made.to_parquet(tmp_path / "x.parquet")
    source = source_of(tmp_path / "x.parquet")
    source.check()
    assert source.class_names == ("cat", "dog")
    found = entries(source)
    assert [entry.label for entry in found] == [0, 1] * 4 + [0]
    assert dict(source.read([entry.place for entry in found])) == dict(enumerate(data))


@pytest.mark.parametrize("plain", [False, True])
def test_rows_are_found_again_in_any_order(tmp_path: Path, plain: bool) -> None:
    data = images(23)
    for k in range(2):
        write(tmp_path / f"{k}.parquet", data, pa.array([i % 3 for i in range(23)]), group=5, plain=plain)
    source = source_of(tmp_path)
    assert [len(group) for group in source.scan()] == [5, 5, 5, 5, 3] * 2
    found = entries(source)
    order = np.random.default_rng(0).permutation(46)[:31]
    read = dict(source.read([found[i].place for i in order]))
    assert [read[j] for j in range(31)] == [data[i % 23] for i in order]


def test_labels_of_every_kind(tmp_path: Path) -> None:
    data = images(4)
    for labels, expected in (
        (pa.array(["b", "a", None, "b"]), ["b", "a", "no_label", "b"]),
        (pa.array(["b", "a", "c", "b"]).dictionary_encode(), ["b", "a", "c", "b"]),
        (pa.array(["007", "7", "c", ""]), ["007", "7", "c", "bad_label"]),
        (pa.array([2, -1, 0, None], pa.int8()), [2, "no_label", 0, "no_label"]),
        (pa.array([True, False, True, True]), [1, 0, 1, 1]),
    ):
        made = entries(source_of(write(tmp_path / "x.parquet", data, labels)))
        assert [e.label if isinstance(e, Ref) else e.reason for e in made] == expected


def test_missing_bytes_and_rows_have_reasons(tmp_path: Path) -> None:
    data = [*images(3), None]
    source = source_of(write(tmp_path / "x.parquet", data, pa.array([0, 1, 0, 1])))
    read = dict(source.read([Place("x.parquet", row=row) for row in (3, 0, 99)]))
    assert read[1] == data[0]
    assert read[0].reason == "no_bytes"
    assert read[2].reason == "unreadable"


def test_structural_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", images(4), pa.array([0, 1, 0, 1]), names=["cat", "dog", "cow"])
    with pytest.raises(DataError, match="class 'cow' has no rows"):
        source_of(path).check()
    with pytest.raises(ConfigError, match=r"source.image_column.*did you mean image"):
        source_of(path, image_column="img")
    with pytest.raises(ConfigError, match=r"source.label_column.*no column 'target'"):
        source_of(path, label_column="target")
    with pytest.raises(ConfigError, match=r"source.image_column.*holds int64"):
        source_of(path, image_column="label")
    with pytest.raises(ConfigError, match="whole numbers or text"):
        source_of(path, label_column="image")
    (tmp_path / "y.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no readable Parquet file"):
        source_of(tmp_path / "y.parquet")
    with pytest.raises(DataError, match="does not exist"):
        source_of(tmp_path / "z.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        source_of(write(tmp_path / "w.parquet", [], pa.array([], pa.int64()))).check()


def test_names_given_in_the_recipe_win(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", images(4), pa.array([0, 1, 0, 1]), names=["cat", "dog"])
    assert source_of(path, class_names=("one", "two")).class_names == ("one", "two")


def named(tmp_path: Path, main: tuple, test: tuple | None = None, **more: object) -> list[list[object]]:
    """The class names, by the listing, of the rows of a file and of a test file, each made of (labels, declared
    names)."""
    paths = []
    for name, made in (("main", main), ("test", test)):
        if made is not None:
            labels, names = made
            paths.append(str(write(tmp_path / f"{name}.parquet", images(len(labels)), pa.array(labels), names=names)))
    section = {"kind": "parquet", "path": paths[0], "test_path": paths[1] if test else None, **more}
    listing = Listing(validate({"name": "t", "source": section, "images": {"size": 16}, "split": {"test": 0}}))
    listing.check(SplitSpec(test=0))
    found = [candidate for group in listing.groups() for candidate in group]
    classes, numbers = listing.classes()
    return [[classes[numbers[c.code]] for c in found if c.set == name] for name in listing.sets]


CAT, DOG, OWL = "cat", "dog", "owl"


@pytest.mark.parametrize(
    ("main", "test", "expected"),
    [
        (([0, 1, 2], [CAT, DOG, OWL]), ([0, 1, 2], [OWL, CAT, DOG]), [[CAT, DOG, OWL], [OWL, CAT, DOG]]),
        (([0, 1], [CAT, DOG]), ([0, 1], None), [[CAT, DOG], [CAT, DOG]]),
        (([DOG, CAT], None), ([0, 1], [DOG, CAT]), [[DOG, CAT], [DOG, CAT]]),
        (([1, 0], [CAT, DOG]), ([DOG, CAT], None), [[DOG, CAT], [DOG, CAT]]),
        (([0, 1], None), (["1", "0"], None), [["0", "1"], ["1", "0"]]),
        (([0, 1], [CAT, DOG]), ([1], [OWL, DOG, "never"]), [[CAT, DOG], [DOG]]),
    ],
)
def test_numbers_are_read_by_their_own_files_names(
    main: tuple, test: tuple, expected: list[list[str]], tmp_path: Path
) -> None:
    assert named(tmp_path, main, test) == expected


@pytest.mark.parametrize(
    ("main", "test", "message"),
    [
        (([CAT, DOG], None), (["Cat", "Dog"], None), r"source.test_path: label 'Cat' .*there it is 'cat'"),
        (([CAT, DOG], None), ([CAT, "zebra"], None), r"label 'zebra' .* is no class of the main set \(cat, dog\)"),
        (([0, 1], None), ([0, 1], [CAT, DOG]), r"label 'cat' .* is no class of the main set \(0, 1\)"),
        (([0, 1], [CAT, DOG]), ([0, 2], None), r"label '2' .* is no class"),
        (([0, 1], [CAT, DOG]), ([0, 1], [CAT, OWL]), r"label 'owl' .* is no class"),
    ],
)
def test_labels_of_a_test_set_that_are_no_class_are_refused(
    main: tuple, test: tuple, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        named(tmp_path, main, test)
    assert "\n" not in str(caught.value)


def test_names_of_the_recipe_choose_by_name_or_rename(tmp_path: Path) -> None:
    main = ([1, 3, 1, 3], ["ant", "bee", "cow", "dog"])
    with pytest.raises(DataError, match=r"class 'ant' has no rows; .*set source.class_names to (\[.*\])$") as caught:
        named(tmp_path, main)
    hint = json.loads(re.search(r"\[.*\]", str(caught.value))[0])
    assert named(tmp_path, main, class_names=hint) == [["bee", "dog", "bee", "dog"]]
    assert named(tmp_path, main, class_names=["dog", "bee"]) == [["bee", "dog", "bee", "dog"]]
    both = ([0, 1, 2, 0], [CAT, DOG, OWL])
    assert named(tmp_path, both, ([0, 1, 2], [OWL, CAT, DOG]), class_names=[DOG, CAT]) == [[CAT, DOG, CAT], [CAT, DOG]]
    assert named(tmp_path, both, ([0, 1], [OWL, CAT, DOG]), class_names=["x", "y", "z"]) == [
        ["x", "y", "z", "x"],
        ["z", "x"],
    ]
    for names in ([CAT, "bird"], ["Cat", "Dog", "Owl"], ["x", "y"]):
        with pytest.raises(DataError, match=r"source.class_names: .* is none of the 3 names that the data declares"):
            named(tmp_path, both, class_names=names)
    with pytest.raises(DataError, match=r"source.class_names: has 2 names, and .* has label 2"):
        named(tmp_path, ([0, 1, 2], None), class_names=[CAT, DOG])


def test_parts_are_joined_by_name_or_refused(tmp_path: Path) -> None:
    def parts(*made: tuple) -> list:
        for number, (labels, names) in enumerate(made):
            write(tmp_path / f"{number}.parquet", images(len(labels)), pa.array(labels), names=names)
        source = source_of(tmp_path)
        source.check()
        return [entry.label if isinstance(entry, Ref) else entry.reason for entry in entries(source)]

    assert parts(([0, 1], [CAT, DOG]), ([0, 1, 5], [DOG, CAT])) == [0, 1, DOG, CAT, "bad_label"]
    assert parts(([CAT, DOG], None), ([0, 1], [DOG, CAT])) == [CAT, DOG, DOG, CAT]
    with pytest.raises(DataError, match=r"0.parquet declares names for its class numbers, 1.parquet does not"):
        parts(([0, 1], [CAT, DOG]), ([0, 1], None))
    with pytest.raises(DataError, match=r"'dog' is in one of them only"):
        parts(([0, 1], [CAT, DOG]), ([0, 1], [CAT, OWL]))
    pq.write_table(pq.read_table(tmp_path / "1.parquet").rename_columns(["image", "lbl"]), tmp_path / "1.parquet")
    with pytest.raises(ConfigError, match=r"1.parquet has no column 'label'; did you mean lbl"):
        source_of(tmp_path).check()


def test_paths_without_bytes_and_folders_that_hold_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [None] * 6, pa.array([0, 1] * 3))
    with pytest.raises(DataError, match="holds paths of images and no bytes"):
        source_of(path).check()
    source_of(write(path, [None, *images(5)], pa.array([0, 1] * 3))).check()
    (tmp_path / "hive/label=cat").mkdir(parents=True)
    pq.write_table(pq.read_table(path).drop_columns(["label"]), tmp_path / "hive/label=cat/0.parquet")
    with pytest.raises(ConfigError, match="folder names hold it"):
        source_of(tmp_path / "hive")


def test_files_of_the_test_set_are_no_part_of_the_main_one(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        write(tmp_path / f"{name}.parquet", images(4), pa.array([0, 1] * 2))
    with pytest.raises(
        DataError, match=r"files of several splits .* source.path to \S+/train-\*.parquet and source.test"
    ):
        source_of(tmp_path).check()
    test = str(tmp_path / "test-0.parquet")
    made = open_sets(ParquetSource(kind="parquet", path=str(tmp_path), test_path=test), ImagesSpec(size=32))
    assert (made[""].names, made["test"].names) == (("train-0.parquet", "train-1.parquet"), ("test-0.parquet",))
    made[""].check()
    with pytest.raises(DataError, match=r"names the files of source\.test_path and no other"):
        source_of(tmp_path / "test-0.parquet", test_path=test)


def test_reading_is_by_row_group(tmp_path: Path) -> None:
    blobs = [RNG.bytes(1 << 18) for _ in range(96)]
    path = write(tmp_path / "x.parquet", blobs, pa.array([i % 2 for i in range(96)]), group=8)
    source = source_of(path)
    before = pa.total_allocated_bytes()
    peak = 0
    for position, data in source.read([Place("x.parquet", row=row) for row in range(8, 16)]):
        assert data == blobs[8 + position]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 1 << 20 < peak < 12 << 20  # of 24 MiB in the file


def test_real_cifar(shared_data: Path) -> None:
    path = shared_data / "cifar10/test.parquet"
    if not path.exists():
        pytest.skip("no ../shared/data/cifar10")
    source = source_of(path)
    source.check()
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    table = pq.read_table(path)
    found = entries(source)
    assert [entry.label for entry in found] == table["label"].to_pylist()
    some = [7, 5003, 9999, 0]
    read = dict(source.read([found[i].place for i in some]))
    assert [read[j] for j in range(4)] == [table["image"][i]["bytes"].as_py() for i in some]


def test_values_that_rows_share_are_read_in_small_batches(tmp_path: Path) -> None:
    """One image of 12 MB, held once by the file for all its 64 rows, would take 770 MB at once."""
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * 64, pa.int32()), pa.array([RNG.bytes(12 << 20)], pa.binary())
    )
    table = pa.table({"image": shared.cast(pa.binary()), "label": [0, 1] * 32})
    pq.write_table(table, tmp_path / "x.parquet", dictionary_pagesize_limit=1 << 30)
    del shared, table
    assert (tmp_path / "x.parquet").stat().st_size < 15 << 20
    source = source_of(tmp_path / "x.parquet")
    source.check()
    before, peak, read = pa.total_allocated_bytes(), 0, 0
    for _, data in source.read([entry.place for entry in entries(source)]):
        assert len(data) == 12 << 20
        peak, read = max(peak, pa.total_allocated_bytes() - before), read + 1
    assert read == 64
    assert peak < 350 << 20


def test_labels_of_a_large_row_group_come_in_batches(tmp_path: Path) -> None:
    rows = 150_000
    labels = np.arange(rows) % 7
    table = pa.table({"image": pa.array([b"%d" % i for i in range(rows)], pa.binary()), "label": labels})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=rows)
    groups = list(source_of(tmp_path / "x.parquet").scan())
    assert max(map(len, groups)) < rows
    assert [entry.label for group in groups for entry in group] == labels.tolist()
    assert [entry.place.row for group in groups for entry in group] == list(range(rows))


def test_a_file_whose_labels_are_damaged_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", images(40), pa.array([f"class {i % 5}" for i in range(40)]), group=40)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    at = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    data[at : at + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read") as caught:
        entries(source_of(path))
    assert "\n" not in str(caught.value)


def test_files_of_other_systems_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", images(4), pa.array([0, 1, 0, 1]))
    (tmp_path / "._a.parquet").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100))
    source = source_of(tmp_path)
    source.check()
    assert source.names == ("a.parquet",)
