"""The stream of candidates: sets kept apart, labels coded, and a limit that is stratified, nested and blind to
order."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ConfigError, DataError
from engine.images.listing import Listing, planned_labels
from engine.spec import RunSpec, validate
from engine.spec.recipe import SplitSpec
from tests.support.images import mixed_folder, plain_folder, save


def spec_of(path: Path, *, seed: int = 0, **source: object) -> RunSpec:
    return validate(
        {"name": "t", "seed": seed, "source": {"kind": "folder", "path": str(path), **source}, "images": {"size": 32}}
    )


def keys(spec: RunSpec) -> list[str]:
    listing = Listing(spec)
    return sorted([c.key for group in listing.groups() for c in group] + [bad.key for bad in listing.bad])


def test_sets_are_told_apart_by_a_prefix_that_no_name_has(tmp_path: Path) -> None:
    main = plain_folder(tmp_path / "main", classes=("test", "b"), per_class=3)
    (main / "test" / "test:x.png").write_bytes((main / "b/0000.png").read_bytes())
    plain_folder(tmp_path / "other", classes=("test", "b"), per_class=2, seed=1)
    listing = Listing(spec_of(main, test_path=str(tmp_path / "other")))
    found = [c for group in listing.groups() for c in group]
    assert len({c.key for c in found}) == len(found) == 11
    for c in found:
        assert (c.set == "test") == c.key.startswith("test:") == c.place.uri.startswith("test:")


def test_limit_keeps_shares_and_every_class(tmp_path: Path) -> None:
    for name, count in (("a", 60), ("b", 30), ("c", 9), ("d", 1)):
        plain_folder(tmp_path, classes=(name,), per_class=count, seed=count)
    for limit, expected in ((50, (30, 15, 4, 1)), (20, (12, 6, 1, 1)), (4, (1, 1, 1, 1)), (500, (60, 30, 9, 1))):
        counted = Counter(key[0] for key in keys(spec_of(tmp_path, limit=limit)))
        assert sum(counted.values()) == min(limit, 100)
        assert all(abs(counted[name] - n) <= 1 for name, n in zip("abcd", expected, strict=True))
    with pytest.raises(ConfigError, match=r"source.limit: 3 images for 4 classes"):
        keys(spec_of(tmp_path, limit=3))


def test_limit_is_nested_and_depends_on_keys_alone(tmp_path: Path) -> None:
    first = plain_folder(tmp_path / "first", per_class=50)
    second = tmp_path / "second"
    for name in ("b", "a"):  # another order on the disk, other bytes
        (second / name).mkdir(parents=True)
        for i in np.random.default_rng(0).permutation(50):
            (second / name / f"{i:04d}.png").write_bytes(b"other")
    small, large = keys(spec_of(first, limit=20)), keys(spec_of(first, limit=60))
    assert len(small) == 20
    assert len(large) == 60
    assert set(small) < set(large)
    assert keys(spec_of(second, limit=20)) == keys(spec_of(first, limit=20, seed=9)) == small
    assert Counter(key[0] for key in small) == {"a": 10, "b": 10}


def test_limit_counts_what_is_refused_early_too(tmp_path: Path) -> None:
    made = mixed_folder(tmp_path / "set", per_class=60, bad=0.3)
    assert len(keys(spec_of(made.path))) == 180
    assert len(keys(spec_of(made.path, limit=90))) == 90


def tar(path: Path, labels: list[str]) -> str:
    image = save(Image.new("RGB", (16, 16)), "PNG")
    with tarfile.open(path, "w") as file:
        for i, label in enumerate(labels):
            for name, data in ((f"{i:03d}.png", image), (f"{i:03d}.cls", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return str(path)


def test_labels_of_a_test_set_are_classes_of_the_main_set(tmp_path: Path) -> None:
    main = tar(tmp_path / "main.tar", ["grey wolf", "red fox"] * 4)

    def checked(labels: list[str], **more: object) -> Listing:
        section = {"kind": "webdataset", "path": main, "test_path": tar(tmp_path / "x.tar", labels), **more}
        listing = Listing(validate({"name": "t", "source": section, "images": {"size": 16}, "split": {"test": 0}}))
        listing.check(SplitSpec(test=0))
        return listing

    for labels, near in ((["grey_wolf", "red fox"], "grey wolf"), (["Red Fox"], "red fox"), (["redfox"], "red fox")):
        with pytest.raises(DataError, match=f"source.test_path: label .* is no class of the main set .*it is '{near}'"):
            checked(labels)
    with pytest.raises(DataError, match="take these images out, or add the class"):
        checked(["red fox", "5"])
    assert not checked(["red fox"]).bad
    chosen = checked(["red fox", "grey wolf", "lynx"], class_names=["red fox", "grey wolf"])
    assert [c.code for group in chosen.groups() for c in group if c.set] == [0, 1]
    assert [bad.reason for bad in chosen.bad] == ["unknown_label"]
    with pytest.raises(DataError, match="there it is 'red fox'"):
        checked(["Red fox", "grey wolf"], class_names=["red fox", "grey wolf"])


def test_a_test_set_with_no_image_is_no_reason_to_split_the_main_one(tmp_path: Path) -> None:
    main = tar(tmp_path / "main.tar", ["a", "b", "c"] * 4)
    section = {
        "kind": "webdataset",
        "path": main,
        "test_path": tar(tmp_path / "x.tar", ["c"]),
        "class_names": ["a", "b"],
    }
    spec = validate({"name": "t", "source": section, "images": {"size": 16}})
    with pytest.raises(DataError, match=r"no image of the test set can be used \(unknown_label 1\)"):
        planned_labels(spec)


def test_one_class_or_no_label_is_no_set(tmp_path: Path) -> None:
    listing = Listing(spec_of(plain_folder(tmp_path / "one", classes=("a",))))
    assert sum(len(group) for group in listing.groups()) == 10
    with pytest.raises(DataError, match=r"one class only \(a\)"):
        listing.classes()
