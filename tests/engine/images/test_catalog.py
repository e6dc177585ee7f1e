"""The catalog end to end, on Ray: good and bad, duplicates, splits, equal bytes, resume, and faults in one line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.cluster.progress import PlainReporter
from engine.errors import ClusterError, DataError, MimeoError
from engine.images import arrangement, catalog
from engine.images.apart import NearDuplicates
from engine.images.arrangement import SCHEMA
from engine.images.catalog import Catalog
from engine.images.inspection import FACTS
from engine.images.similar import PRINT_BYTES
from engine.images.sources.source import encode_name
from engine.spec import RunSpec, validate
from engine.storage.store import Store, open_store
from tests.support.images import mixed_folder, picture, plain_folder, save
from tests.support.tiers import slow

FILES = (catalog.TABLE, catalog.QUARANTINED, catalog.NEAR_DUPLICATES, catalog.DONE)


def spec_of(source: dict[str, object], **more: object) -> RunSpec:
    return validate({"name": "t", "source": source, "images": {"size": 32}, "pretrain": {"held_out": 0}, **more})


def folder(path: Path, **more: object) -> dict[str, object]:
    return {"kind": "folder", "path": str(path), **more}


def build(spec: RunSpec, place: Path) -> tuple[Catalog, Store]:
    store = open_store(str(place))
    return catalog.build(spec, store, PlainReporter()), store


def quarantine(store: Store) -> dict[str, dict[str, str]]:
    rows = pq.read_table(store.local(catalog.QUARANTINED)).to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    return {row["key"]: row for row in rows}


def test_digits_in_a_moment(ray_cluster: None, tmp_path: Path) -> None:
    spec = validate(
        {"name": "t", "source": {"kind": "digits"}, "images": {"size": 8}, "split": {"train": 100, "test": 899}}
    )
    made, store = build(spec, tmp_path / "first")
    assert made.table.schema == SCHEMA
    assert made.class_names == tuple("0123456789")
    assert {name: made.split(name).num_rows for name in catalog.NAMES} == {
        "unused": 798,
        "train": 100,
        "validation": 0,
        "test": 899,
    }
    assert made.quarantined == 0
    assert np.array_equal(np.bincount(made.split("train")["label"]), np.full(10, 10))
    started = time.process_time()
    again = catalog.build(spec, store, PlainReporter())
    assert time.process_time() - started < 1
    assert again.digest == made.digest
    assert again.table.equals(made.table)
    assert catalog.load(store).class_names == made.class_names


def test_a_folder_with_bad_files(ray_cluster: None, tmp_path: Path) -> None:
    mixed = mixed_folder(tmp_path / "set", per_class=50, bad=0.34)
    made, store = build(spec_of(folder(mixed.path)), tmp_path / "out")
    assert made.table["key"].to_pylist() == sorted(encode_name(name) for name in mixed.good)
    assert {key: row["reason"] for key, row in quarantine(store).items()} == {
        encode_name(n): r for n, r in mixed.bad.items()
    }
    assert made.quarantined == len(mixed.bad)
    for row in made.table.to_pylist():
        assert row["class_name"] == row["key"].split("/")[0] == made.class_names[row["label"]]
    for key, kind in ((encode_name(name), kind) for name, kind in mixed.good.items()):
        row = made.table.filter(pc.equal(made.table["key"], key)).to_pylist()[0]
        path = mixed.path / next(name for name in mixed.good if encode_name(name) == key)
        data = path.read_bytes()
        assert (row["sha256"], row["nbytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        size = Image.open(path).size
        assert (row["width"], row["height"]) == (size[::-1] if kind == "turned-jpeg" else size)
        assert ("JPEG named .png" in row["notes"]) == (kind == "misnamed")
    done = json.loads(store.read(catalog.DONE))
    assert done["images"] == len(mixed.good)
    assert sum(done["reasons"].values()) == len(mixed.bad)


def test_bytes_do_not_depend_on_chunks_waves_or_order(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = mixed_folder(tmp_path / "set", per_class=20, bad=0.2)
    (mixed.path / "circle/twin").write_bytes((mixed.path / min(mixed.good)).read_bytes())
    made = []
    for group, wave in ((512, 256), (7, 3), (1, 64)):
        monkeypatch.setattr("engine.images.sources.labelled.GROUP", group)
        monkeypatch.setattr(catalog, "GROUP", group)
        monkeypatch.setattr(catalog, "WAVE", wave)
        _, store = build(spec_of(folder(mixed.path)), tmp_path / f"out-{group}")
        made.append([store.read(name) for name in FILES])
    assert made[0] == made[1] == made[2]
    moved = tmp_path / "elsewhere"
    mixed.path.rename(moved)
    _, store = build(spec_of(folder(moved)), tmp_path / "out-moved")
    assert [store.read(name) for name in FILES] == made[0]


def test_duplicates_never_cross_splits(ray_cluster: None, tmp_path: Path) -> None:
    root, test = plain_folder(tmp_path / "set", per_class=6), plain_folder(tmp_path / "test", per_class=3, seed=5)
    original = (root / "a/0001.png").read_bytes()
    (root / "a/copy.png").write_bytes(original)  # same bytes
    (root / "a/recoded.bmp").write_bytes(save(Image.open(root / "a/0002.png"), "BMP"))  # same pixels
    (root / "b/wrong.png").write_bytes((root / "a/0003.png").read_bytes())  # another label
    (root / "b/leak.png").write_bytes((test / "a/0001.png").read_bytes())  # a test image under another label
    (root / "a/leak.png").write_bytes((test / "a/0000.png").read_bytes())  # a test image
    (test / "b/twice.png").write_bytes((test / "b/0001.png").read_bytes())
    made, store = build(spec_of(folder(root, test_path=str(test)), split={"validation": 4}), tmp_path / "out")
    bad = quarantine(store)
    told = {key: (row["reason"], row["duplicate_of"], row["detail"]) for key, row in bad.items()}
    assert told == {
        "a/copy.png": ("duplicate", "a/0001.png", "same bytes as a/0001.png"),
        "a/recoded.bmp": ("duplicate", "a/0002.png", "same pixels as a/0002.png"),
        "a/0003.png": ("label_conflict", "", "its pixels have other labels too"),
        "b/wrong.png": ("label_conflict", "a/0003.png", "same bytes as a/0003.png, which is labelled a and not b"),
        "b/leak.png": ("duplicate", "test:a/0001.png", "same bytes as test:a/0001.png, which is labelled a and not b"),
        "a/leak.png": ("duplicate", "test:a/0000.png", "same bytes as test:a/0000.png"),
        "test:b/twice.png": ("duplicate", "test:b/0001.png", "same bytes as test:b/0001.png"),
    }
    assert made.split("test")["key"].to_pylist() == sorted(f"test:{c}/{i:04d}.png" for c in "ab" for i in range(3))
    assert (made.split("train").num_rows, made.split("validation").num_rows) == (7, 4)
    contents = [set(made.split(name)["pixels_sha256"].to_pylist()) for name in catalog.NAMES]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 17


def _lighter(path: Path) -> bytes:
    """Another file of the same picture: brighter by a little, and a JPEG."""
    return save(Image.fromarray(np.minimum(np.asarray(Image.open(path)), 245) + 10), "JPEG", quality=95)


def test_near_duplicates_never_lie_across_splits(ray_cluster: None, tmp_path: Path) -> None:
    root, tests = plain_folder(tmp_path / "set", per_class=30), plain_folder(tmp_path / "test", per_class=6, seed=9)
    for i in range(12):
        (root / f"a/copy{i:02d}.jpg").write_bytes(_lighter(root / f"a/{i:04d}.png"))
    for name in ("a", "b"):
        (root / f"{name}/leak.jpg").write_bytes(_lighter(tests / f"{name}/0002.png"))
    split = {"validation": 0.25, "test": 0.25}
    made, store = build(spec_of(folder(root), split=split), tmp_path / "random")
    listed = pq.read_table(store.local(catalog.NEAR_DUPLICATES)).to_pandas()
    assert listed.groupby("group")["split"].nunique().max() == 1
    assert listed.groupby("group")["key"].count().tolist() == [2] * 12
    counted = json.loads(store.read(catalog.DONE))["near_duplicates"]
    assert counted == {"images": 24, "groups": 12, "set_aside": 0, "across": 0}
    assert catalog.load(store).near_duplicates == made.near_duplicates
    allowed, _ = build(spec_of(folder(root), split=split | {"near_duplicates": "allow"}), tmp_path / "allowed")
    assert allowed.near_duplicates is not None
    assert allowed.near_duplicates.across > 0
    sizes = [{name: one.split(name).num_rows for name in catalog.NAMES} for one in (made, allowed)]
    assert sizes[0] == sizes[1]

    given, store = build(spec_of(folder(root, test_path=str(tests)), split={"validation": 0.25}), tmp_path / "given")
    assert given.split("test").num_rows == 12
    assert given.near_duplicates == NearDuplicates(images=28, groups=14, set_aside=2, across=0)
    told = {key: (row["reason"], row["duplicate_of"]) for key, row in quarantine(store).items()}
    assert told == {f"{name}/leak.jpg": ("near_duplicate", f"test:{name}/0002.png") for name in ("a", "b")}
    old = json.loads(store.read(catalog.DONE))
    del old["near_duplicates"]
    store.replace(catalog.DONE, json.dumps(old).encode())
    assert catalog.load(store).near_duplicates is None


def test_real_cifar_with_a_limit(ray_cluster: None, shared_data: Path, tmp_path: Path) -> None:
    train, test = shared_data / "cifar10/train.parquet", shared_data / "cifar10/test.parquet"
    if not train.exists():
        pytest.skip("no ../shared/data/cifar10")
    source = {"kind": "parquet", "path": str(train), "test_path": str(test), "limit": 1000}
    made, _ = build(spec_of(source, split={"validation": 100}), tmp_path / "out")
    assert made.class_names[3] == "cat"
    sizes = {name: made.split(name).num_rows for name in ("train", "validation", "test")}
    assert sizes["validation"] == 100
    assert 1990 <= sum(sizes.values()) <= 2000
    assert np.bincount(made.split("train")["label"]).min() >= 88
    table = pq.read_table(train)
    for row in made.split("train").slice(0, 20).to_pylist():
        assert row["label"] == table["label"][row["row"]].as_py()
        assert row["sha256"] == hashlib.sha256(table["image"][row["row"]]["bytes"].as_py()).hexdigest()


def test_a_test_set_without_a_good_image_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    root, test = plain_folder(tmp_path / "set", per_class=8), plain_folder(tmp_path / "test", per_class=1)
    for path in test.rglob("*.png"):
        path.write_bytes(b"spoiled " + path.parent.name.encode())
    with pytest.raises(DataError, match=r"source.test_path: no image of the test set can be used \(not_an_image 2\)"):
        build(spec_of(folder(root, test_path=str(test))), tmp_path / "out")


def test_two_classes_of_ten_may_be_chosen(ray_cluster: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [{"bytes": save(Image.fromarray(picture(rng, 8, 8)), "PNG"), "path": ""} for _ in range(40)]
    pq.write_table(pa.table({"image": data, "label": [f"c{i % 10}" for i in range(40)]}), tmp_path / "x.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "x.parquet"), "class_names": ["c7", "c2"]}
    made, store = build(spec_of(source, images={"size": 8}, split={"test": 0}), tmp_path / "out")
    rows = made.table.to_pylist()
    assert {(row["row"] % 10, row["class_name"], row["label"]) for row in rows} == {(7, "c7", 0), (2, "c2", 1)}
    assert {row["reason"] for row in quarantine(store).values()} == {"unknown_label"}
    assert (len(rows), made.quarantined) == (8, 32)


def facts_of(pixels: list[str], codes: list[int], sets: list[str], keys: list[str]) -> pa.Table:
    """What inspection would say of good images."""
    known: dict[str, list[Any]] = {"set": sets, "key": keys, "code": codes, "uri": keys}
    known |= {"sha256": pixels, "pixels_sha256": pixels}
    rng = np.random.default_rng(len(keys))
    known["phash"] = rng.integers(2**63, size=len(keys)).tolist()
    known["print"] = [rng.bytes(PRINT_BYTES) for _ in keys]
    rest = {f.name: [None if pa.types.is_integer(f.type) else ""] * len(keys) for f in FACTS if f.name not in known}
    return pa.table({f.name: pa.array((known | rest)[f.name], f.type) for f in FACTS}, schema=FACTS)


@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), min_size=1, max_size=40))
def test_equal_pixels_are_kept_once_and_never_with_two_labels(rows: list[tuple[int, int, bool]]) -> None:
    sets = ["test" if test else "" for _, _, test in rows]
    keys = [f"{own}:{i:03d}" for i, own in enumerate(sets)]
    facts = facts_of([f"{p}" for p, _, _ in rows], [c for _, c, _ in rows], sets, keys)
    kept, gone = arrangement._distinct(facts, ["a", "b", "c"])
    expected = set()
    for drawn in {p for p, _, _ in rows}:
        group = [i for i, row in enumerate(rows) if row[0] == drawn]
        group = [i for i in group if rows[i][2]] or group  # a given test set before others
        if len({rows[i][1] for i in group}) == 1:
            expected.add(keys[group[0]])
    assert set(kept["key"].to_pylist()) == expected
    assert sorted(bad.key for bad in gone) == sorted(set(keys) - expected)


def test_a_catalog_past_the_reach_of_narrow_columns_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3_000
    pixels = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]
    keys = [f"{i * 7919 % count:08d}" for i in range(count)]
    spec, numbers = spec_of(folder(tmp_path)), np.arange(2, dtype=np.int32)
    made = []
    for most in (2**31 - 1, 1_000):
        monkeypatch.setattr("engine.images.columns.NARROW_BYTES", most)
        parts = [
            facts_of(pixels[a : a + 500], [i % 2 for i in range(500)], [""] * 500, keys[a : a + 500])
            for a in range(0, count, 500)
        ]
        found = arrangement.arranged(parts, [], ("a", "b"), numbers, spec, given_test=False)
        table, bad = found.table, found.left_out
        assert not bad
        store = open_store(str(tmp_path / str(most)))
        whole = Catalog(table, ("a", "b"), 0, catalog.table_digest(table))
        catalog._publish(whole, catalog._quarantine_table([], ("a", "b"), numbers), store)
        again = catalog.load(store)
        assert again.table.equals(table)
        part = catalog.restrict(again, again.split("train")["key"].to_pylist()[:5])
        held = catalog.withheld(part)
        made.append(
            (
                whole.digest,
                [store.read(name) for name in FILES if name != catalog.NEAR_DUPLICATES],
                part.digest,
                held.digest,
                table["key"].to_pylist(),
            )
        )
        assert table.schema.field("key").type == (pa.string() if most > 1_000 else pa.large_string())
    assert made[0] == made[1]
    assert made[0][4] == sorted(keys)


@pytest.mark.skipif(psutil.virtual_memory().available < 16 * 2**30, reason="needs 16 GiB of free memory")
@slow
def test_more_than_two_gib_of_keys(tmp_path: Path) -> None:
    count, length = 560_000, 4_000
    parts = []
    for start in range(0, count, 20_000):
        rows = range(start, start + 20_000)
        keys = [f"{i * 7919 % count:0{length}d}" for i in rows]
        table = facts_of(
            [hashlib.sha256(b"%d" % i).hexdigest() for i in rows], [i % 2 for i in rows], [""] * 20_000, keys
        )
        parts.append(table.set_column(table.schema.get_field_index("uri"), FACTS.field("uri"), pa.array([""] * 20_000)))
    spec, numbers = spec_of(folder(tmp_path)), np.arange(2, dtype=np.int32)
    table = arrangement.arranged(parts, [], ("a", "b"), numbers, spec, given_test=False).table
    assert table["key"].nbytes > 2**31
    store = open_store(str(tmp_path / "out"))
    whole = Catalog(table, ("a", "b"), 0, catalog.table_digest(table))
    catalog._publish(whole, catalog._quarantine_table([], ("a", "b"), numbers), store)
    del parts
    for row in (0, 1, count // 2, count - 1):
        assert int(table["key"][row].as_py()) == row
    assert catalog.load(store).digest == whole.digest
    assert whole.split("train").take(pa.array([1]))["key"].to_pylist() == [whole.split("train")["key"][1].as_py()]


def test_a_set_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = save(Image.new("RGB", (8, 8)), "PNG")
    table = pa.table({"image": [{"bytes": image, "path": ""}] * 4, "label": [0, 1] * 2})
    pq.write_table(table, tmp_path / "x.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "x.parquet")}
    catalog.precheck(spec_of(source, split={"test": 0}))
    monkeypatch.setattr("engine.images.listing.MEMORY", 2**62)
    with pytest.raises(ClusterError, match=r"catalog of 4 images takes about .* set source.limit"):
        catalog.precheck(spec_of(source, split={"test": 0}))
    monkeypatch.setattr("engine.images.listing.MEMORY", psutil.virtual_memory().total // 3)
    with pytest.raises(ClusterError, match="catalog of 4 images"):
        catalog.precheck(spec_of(source, split={"test": 0}))
    catalog.precheck(spec_of({**source, "limit": 3}, split={"test": 0}))


def test_faults_of_the_whole_set(ray_cluster: None, tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=4)
    for i in range(4):
        (root / f"b/{i:04d}.png").write_bytes(b"spoiled %d" % i)
    with pytest.raises(DataError, match=r"class 'b' has no good, distinct image"):
        build(spec_of(folder(root), images={"size": 32, "max_bad_fraction": 0.9}), tmp_path / "out")
    with pytest.raises(
        DataError, match=r"4 of 8 images cannot be used \(not_an_image 4\), images.max_bad_fraction is 0.1"
    ):
        build(spec_of(folder(root), images={"size": 32, "max_bad_fraction": 0.1}), tmp_path / "out")
    for i in range(4):
        (root / f"a/{i:04d}.png").write_bytes(b"spoiled")
    with pytest.raises(DataError, match="8 of 8 images cannot be used"):
        build(spec_of(folder(root), images={"size": 32, "max_bad_fraction": 1}), tmp_path / "out")
    assert not list(open_store(str(tmp_path / "out")).list())
    with pytest.raises(DataError, match=r"split: asks for 99 images, there are 8"):
        build(
            spec_of(folder(plain_folder(tmp_path / "ok", per_class=4)), split={"train": 90, "test": 9}),
            tmp_path / "out",
        )


def test_a_changed_catalog_is_noticed(ray_cluster: None, tmp_path: Path) -> None:
    spec = spec_of(folder(plain_folder(tmp_path / "set", per_class=4)))
    _, store = build(spec, tmp_path / "out")
    _, other = build(spec.model_copy(update={"seed": 5}), tmp_path / "other")
    store.replace(catalog.TABLE, Path(other.local(catalog.TABLE)).read_bytes())
    with pytest.raises(DataError, match="is not the catalog"):
        catalog.load(store)
    store.replace(catalog.TABLE, b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read"):
        catalog.load(store)
    with pytest.raises(DataError, match="holds no finished catalog"):
        catalog.load(open_store(str(tmp_path / "nothing")))


def test_a_crash_before_the_marker_starts_over(ray_cluster: None, tmp_path: Path) -> None:
    spec = spec_of(folder(plain_folder(tmp_path / "set", per_class=4)))
    first, store = build(spec, tmp_path / "out")
    whole = [store.read(name) for name in FILES]
    store.remove(catalog.DONE)
    store.replace(catalog.TABLE, b"torn")
    assert catalog.build(spec, store, PlainReporter()).digest == first.digest
    assert [store.read(name) for name in FILES] == whole


def test_the_digest_covers_key_label_split_and_pixels(tmp_path: Path) -> None:
    rows = [
        {name: 1 if SCHEMA.field(name).type in ("int32", "int64") else "x" for name in SCHEMA.names} for _ in range(3)
    ]
    seen = set()
    for change in ({}, {"key": "y"}, {"label": 2}, {"split": "test"}, {"pixels_sha256": "y"}):
        seen.add(catalog.table_digest(pa.Table.from_pylist([*rows[:2], rows[2] | change], schema=SCHEMA)))
    assert len(seen) == 5
    lines = "".join("x\t1\tx\tx\n" for _ in rows)
    assert hashlib.sha256(lines.encode()).hexdigest() == catalog.table_digest(pa.Table.from_pylist(rows, schema=SCHEMA))


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ({"kind": "folder", "path": "/no/such/place"}, "does not exist"),
        ({"kind": "webdataset", "path": "/no/such/*.tar"}, "holds no .tar file"),
        ({"kind": "parquet", "path": "/no/such.parquet"}, "does not exist"),
        ({"kind": "hub", "dataset": "no/such"}, "not in the local cache"),
    ],
)
def test_precheck_finds_a_missing_place(source: dict[str, object], word: str) -> None:
    started = time.process_time()
    with pytest.raises(MimeoError, match=word):
        catalog.precheck(spec_of(source))
    assert time.process_time() - started < 3


def test_precheck_knows_what_a_split_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = {"name": "t", "source": {"kind": "digits"}, "images": {"size": 8}}
    catalog.precheck(validate({**digits, "split": {"train": 100, "test": 899}}))
    with pytest.raises(DataError, match=r"split: asks for 5,359 images, there are 1,797"):
        catalog.precheck(validate({**digits, "split": {"train": 5000}}))
    root = plain_folder(tmp_path / "set", per_class=20)
    for quick in (1000, 10):
        monkeypatch.setattr("engine.images.listing.QUICK", quick)
        catalog.precheck(spec_of(folder(root, limit=10), split={"train": 8, "test": 2}))
        with pytest.raises(DataError, match="there are 10"):
            catalog.precheck(spec_of(folder(root, limit=10), split={"train": 9, "test": 2}))
    catalog.precheck(spec_of(folder(root), split={"train": 900}))
    monkeypatch.setattr("engine.images.listing.QUICK", 1000)
    with pytest.raises(DataError, match="there are 40"):
        catalog.precheck(spec_of(folder(root), split={"train": 900}))


def test_the_package_starts_light() -> None:
    script = (
        "import sys; import engine.images.catalog, engine.images.image_reader, engine.images.splits;"
        "heavy = {'ray', 'torch', 'diffusers', 'sklearn', 'huggingface_hub', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_many_names_of_one_picture(ray_cluster: None, tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=2)
    data = save(Image.fromarray(picture(np.random.default_rng(1), 20, 20)), "PNG")
    for name in ("\udcff\udcfe.png", "line\nbreak.png", "猫.png", "a%0Ab.png"):
        (root / "a" / name).write_bytes(data)
    made, store = build(spec_of(folder(root), split={"test": 0.0}), tmp_path / "out")
    keys = made.table["key"].to_pylist() + list(quarantine(store))
    assert sorted(keys) == sorted(
        ["a/%FF%FE.png", "a/line%0Abreak.png", "a/猫.png", "a/a%250Ab.png"]
        + [f"{c}/000{i}.png" for c in "ab" for i in (0, 1)]
    )
    assert len({row["duplicate_of"] for row in quarantine(store).values()}) == 1
