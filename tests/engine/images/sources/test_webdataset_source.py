"""WebDataset tars, compared with the webdataset library's own reading of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from engine.errors import ConfigError, DataError
from engine.images.sources import Ref, Rejected, open_sets
from engine.images.sources.webdataset import Tars
from engine.spec import identity, spec_hash, validate
from engine.spec.recipe import ImagesSpec, WebDatasetSource
from engine.storage.claim import claim
from engine.storage.store import open_store
from tests.support.images import picture, save

RNG = np.random.default_rng(5)


def image(format: str = "PNG") -> bytes:
    return save(Image.fromarray(picture(RNG, 16, 16)), format)


def write(path: Path, members: list[tuple[str, bytes]], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def source_of(path: Path | str, **more: object) -> Tars:
    spec = WebDatasetSource(kind="webdataset", path=str(path), **more)
    return open_sets(spec, ImagesSpec(size=32, max_bytes=100_000))[""]


def entries(source: Tars) -> list[Ref | Rejected]:
    return [entry for group in source.scan() for entry in group]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_webdataset_reads(tmp_path: Path, format: int) -> None:
    long = "very/" * 30 + "long"
    for k in range(3):
        members = []
        for i in range(20):
            name = f"{long if i == 7 and format != tarfile.USTAR_FORMAT else 'dir'}/{k}{i:03d}"
            members += [
                (f"{name}.jpg", image("JPEG")),
                (f"{name}.cls", b"%d\n" % (i % 4)),
                (f"{name}.seg.png", image()),
            ]
        write(tmp_path / f"set-{k}.tar", members, format=format)
    source = source_of(tmp_path)
    source.check()
    found = entries(source)
    read = dict(source.read([entry.place for entry in found]))
    urls = [str(tmp_path / f"set-{k}.tar") for k in range(3)]
    expected = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(expected) == len(found) == 60
    for i, (entry, sample) in enumerate(zip(found, expected, strict=True)):
        assert read[i] == sample["jpg"]
        assert entry.label == int(sample["cls"])
        assert entry.key.endswith("/" + sample["__key__"])
        with Path(sample["__url__"]).open("rb") as file:  # the byte range alone is enough
            file.seek(entry.place.offset)
            assert file.read(entry.place.size) == sample["jpg"]


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("x/a-0.tar", "x/a-1.tar", "x/deep/b-0.tar", "x/notes.txt"):
        write(tmp_path / name, [("0.png", image()), ("0.cls", b"0")])
    assert source_of(tmp_path / "x").names == ("a-0.tar", "a-1.tar", "deep/b-0.tar")
    assert source_of(tmp_path / "x/a-1.tar").names == ("a-1.tar",)
    assert source_of(tmp_path / "x/a-*.tar").names == ("a-0.tar", "a-1.tar")
    for path in (tmp_path / "none", tmp_path / "x/c-*.tar"):
        with pytest.raises(DataError):
            source_of(path)


def test_labels_come_from_cls_or_json(tmp_path: Path) -> None:
    members = [
        ("0.png", image()),
        ("0.json", b'{"label": 3}'),
        ("1.png", image()),
        ("1.json", b'{"label": "cat"}'),
        ("2.png", image()),
        ("2.json", b'{"other": 1}'),
        ("3.png", image()),
        ("3.json", b"{"),
        ("4.png", image()),
        ("4.json", b'{"label": NaN}'),
        ("5.png", image()),
        ("5.json", b"[" * 100_000),
        ("6.png", image()),
        ("6.cls", b" tabby cat\n"),
        ("6.json", b'{"label": 9}'),
        ("7.png", image()),
        ("7.cls", b"-1"),
        ("8.png", image()),
        ("9.png", image()),
        ("9.cls", b"\xff\xfe"),
    ]
    made = [e.label if isinstance(e, Ref) else e.reason for e in entries(source_of(write(tmp_path / "x.tar", members)))]
    bad = "bad_label"
    assert made == [3, "cat", "no_label", bad, bad, bad, "tabby cat", "no_label", "no_label", bad]
    other = entries(source_of(tmp_path / "x.tar", label_key="other"))
    assert other[2].label == 1


def expected(*paths: Path, image: str = "jpg") -> list[tuple[str, bytes, int]]:
    """(key, image, label) of each sample as the webdataset library reads them; samples without both are left out."""
    urls = [str(path) for path in paths]
    read = wds.WebDataset(urls if len(urls) > 1 else urls[0], shardshuffle=False, empty_check=False)
    return [(s["__key__"], s[image], int(s["cls"])) for s in read if image in s and "cls" in s]


def made(source: Tars) -> list[tuple[str, bytes, int]]:
    """The same as the engine reads them, after its check."""
    source.check()
    found = [entry for entry in entries(source) if isinstance(entry, Ref)]
    read = dict(source.read([entry.place for entry in found]))
    return [(entry.key.rpartition("/")[2], read[i], entry.label) for i, entry in enumerate(found)]


def labelled(count: int, extension: str = "jpg", key: str = "{:04d}") -> list[tuple[str, bytes]]:
    each = [
        ((f"{key.format(i)}.{extension}", image("JPEG")), (f"{key.format(i)}.cls", b"%d" % (i % 2)))
        for i in range(count)
    ]
    return [member for pair in each for member in pair]


def rejected(source: Tars) -> dict[str, int]:
    return Counter(entry.reason for entry in entries(source) if isinstance(entry, Rejected))


def test_an_image_and_its_mask_under_one_key(tmp_path: Path) -> None:
    members = [
        m for i in range(6) for m in ((f"{i}.jpg", image("JPEG")), (f"{i}.png", image()), (f"{i}.cls", b"%d" % (i % 2)))
    ]
    path = write(tmp_path / "x.tar", members)
    with pytest.raises(ConfigError, match=r"source.image_key: sample x.tar/0 has the images jpg, png"):
        source_of(path).check()
    assert rejected(source_of(path)) == {"several_images": 6}
    for key in ("jpg", "png"):
        assert made(source_of(path, image_key=key)) == expected(path, image=key)
    assert made(source_of(path, image_key="webp;.PNG")) == expected(path, image="png")
    with pytest.raises(DataError, match="no image with a label"):
        source_of(path, image_key="webp").check()


def test_the_recipe_without_an_image_key_is_the_same_run(tmp_path: Path) -> None:
    def run(**more: object) -> str:
        source = {"kind": "webdataset", "path": "/x", **more}
        return spec_hash(validate({"name": "x", "images": {"size": 16}, "source": source}))

    assert run() == run(image_key=None) != run(image_key="jpg")
    assert (
        "image_key"
        not in identity(
            validate({"name": "x", "images": {"size": 16}, "source": {"kind": "webdataset", "path": "/x"}})
        )["source"]
    )


@pytest.mark.parametrize("name", [f"0.{e}" for e in ("jfif", "jpe", "JPG", "apng", "dib", "left.jpg")])
def test_every_extension_of_an_image(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.tar", [(name, image()), ("0.cls", b"1")])
    key = name.lower().partition(".")[2]
    if "." in key:
        with pytest.raises(DataError, match=r"source\.image_key"):
            source_of(path).check()
    assert made(source_of(path, image_key=key if "." in key else None)) == expected(path, image=key)


def test_an_archive_behind_another_is_named(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", labelled(10)), write(tmp_path / "b", labelled(7, key="b{}"))
    path = tmp_path / "all.tar"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert made(source_of(path)) == expected(path) == expected(first)
    assert rejected(source_of(path)) == {"behind_end": 7}
    path.write_bytes(first.read_bytes() + bytes(1 << 20) + b"x" * 512)  # what is no tar is no data
    assert rejected(source_of(path)) == {}


def test_empty_tars_and_files_of_other_systems_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "s-0.tar", [])
    path = write(tmp_path / "s-1.tar", [("__index__", b"x"), ("._0000.jpg", b"mac"), *labelled(12), ("README", b"x")])
    apple = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100)
    for name in ("._s-1.tar", ".hidden/x.tar", "$RECYCLE.BIN/x.tar", "__MACOSX/s-1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(apple)
    for given in (tmp_path, tmp_path / "**/*.tar"):
        source = source_of(given)
        assert made(source) == expected(path)
        assert (rejected(source), source.skipped) == ({}, {"tar without a member": 1})


def test_one_compressed_tar_among_plain_ones_is_refused(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"s-{k}.tar", labelled(4))
    (tmp_path / "s-1.tar").write_bytes(gzip.compress((tmp_path / "s-1.tar").read_bytes()))
    with pytest.raises(DataError, match=r"s-1.tar is compressed with gzip"):
        source_of(tmp_path).check()
    assert rejected(source_of(tmp_path)) == {"compressed_tar": 1}


def test_the_first_sample_does_not_speak_for_all(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("0.jpg", image("JPEG")), ("1.txt", b"x"), *labelled(4, key="k{}")])
    assert made(source_of(path)) == expected(path)
    assert rejected(source_of(path)) == {"no_label": 1, "no_image": 1}


@pytest.mark.parametrize("pattern", ["s-{000000..000002}.tar", "s-{000000,000002}.tar", "{s,t}-{000000..000001}.tar"])
def test_braces_are_those_of_webdataset(tmp_path: Path, pattern: str) -> None:
    for letter in "st":
        for k in range(3):
            write(tmp_path / f"{letter}-{k:06d}.tar", labelled(4, key=letter + f"{k}-{{}}"))
    source = source_of(tmp_path / pattern)
    assert sorted(made(source)) == sorted(expected(tmp_path / pattern))
    with pytest.raises(DataError, match=r"s-000003.tar does not exist"):
        source_of(tmp_path / "s-{000000..000003}.tar")


def test_names_that_webdataset_splits_otherwise_are_explained(tmp_path: Path) -> None:
    dots = write(tmp_path / "dots.tar", labelled(5, key="IMG.{:04d}.v1"))
    assert expected(dots) == []
    with pytest.raises(DataError, match=r"first dot.*rename the members"):
        source_of(dots).check()
    members = labelled(5)
    apart = write(tmp_path / "apart.tar", members[0::2] + members[1::2])
    assert expected(apart) == []
    with pytest.raises(DataError, match=r"side by side.*--sort=name"):
        source_of(apart).check()
    assert rejected(source_of(apart)) == {"no_label": 5, "duplicate_key": 5}
    twice = write(tmp_path / "twice.tar", [("9.jpg", image()), ("9.jpg", image()), *members])
    assert rejected(source_of(twice)) == {"duplicate_member": 1}
    with pytest.raises(ValueError, match="duplicate file name"):
        expected(twice)


def test_hard_links_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            for name, data in ((f"{i}.cls", b"0"), (f"{i}.jpg", image("JPEG"))):
                info = tarfile.TarInfo(name)
                if name == "2.cls":
                    info.type, info.linkname = tarfile.LNKTYPE, "0.cls"
                    tar.addfile(info)
                else:
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    source = source_of(path)
    assert made(source) == expected(path)
    (bad,) = (entry for entry in entries(source) if isinstance(entry, Rejected))
    assert bad.reason == "no_label"
    assert bad.detail.endswith("; x.tar/2.cls is a hard link")
    assert source.skipped == {"hard link in a tar": 1}


def test_own_outputs_among_the_tars_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "set/a.tar", labelled(4))
    spec = validate({"name": "x", "images": {"size": 16}, "source": {"kind": "digits"}})
    claim(open_store(tmp_path / "set/runs/x"), spec)
    write(tmp_path / "set/runs/x/data/x-000000.tar", labelled(4, key="fake{}"))
    for given in (tmp_path / "set", tmp_path / "set/**/*.tar"):
        assert made(source_of(given)) == expected(path)
    assert len(made(source_of(tmp_path / "set/runs/x/data"))) == 4  # asked for by its own path


def test_untrusted_members_are_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in (
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "../../etc/passwd"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("device.png", tarfile.CHRTYPE, ""),
            ("folder.png", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name, data in (
            ("../../up.png", image()),
            ("../../up.cls", b"1"),
            ("big.png", bytes(100_001)),
            ("big.cls", b"1"),
            ("zero.png", b""),
            ("zero.cls", b"1"),
            ("new\nline.PNG", image()),
            ("new\nline.cls", b"1"),
            ("words.txt", b"x"),
            ("words.cls", b"1"),
            ("evil.pyd", b"x"),
            ("evil.cls", b"1"),
            ("../../up.png", image()),
            ("../../up.cls", b"1"),
            ("._up.png", b"x"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made = {e.key: "ok" if isinstance(e, Ref) else e.reason for e in entries(source_of(path))}
    assert made.pop("x.tar/../../up") == "ok"
    assert made.pop("x.tar/new%0Aline") == "ok"
    assert sorted(made.values()) == ["duplicate_key", "empty_file", "no_image", "no_image", "too_large_file"]


def test_broken_tars_lose_only_what_is_broken(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", image() if e == "png" else b"%d" % (i % 2)) for i in range(6) for e in ("png", "cls")]
    whole = write(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar").write_bytes(b"not a tar" * 200)
    found = entries(source_of(tmp_path))
    assert sum(isinstance(e, Ref) and e.key.startswith("a.tar") for e in found) == 6
    broken = {e.key for e in found if isinstance(e, Rejected) and e.reason == "broken_tar"}
    assert broken >= {"c.tar", "d.tar"}
    kept = [e for e in found if isinstance(e, Ref) and e.key.startswith("b.tar")]
    assert 0 < len(kept) < 6


def test_a_tar_that_shrank_after_the_scan(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("0.png", image()), ("0.cls", b"0"), ("1.png", image()), ("1.cls", b"1")])
    source = source_of(path)
    places = [entry.place for entry in entries(source)]
    path.write_bytes(path.read_bytes()[: places[1].offset + 5])
    read = dict(source.read(places))
    assert isinstance(read[0], bytes)
    assert read[1].reason == "truncated"
    path.unlink()
    assert {bad.reason for _, bad in source.read(places)} == {"unreadable"}


def test_faults_of_the_whole(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.tar", [("0.png", image()), ("0.cls", b"0")])
    (tmp_path / "z.tar").write_bytes(gzip.compress(packed.read_bytes()))
    for path, word in (
        (tmp_path / "z.tar", "compressed with gzip"),
        (write(tmp_path / "none.tar", []), "holds no image"),
        (write(tmp_path / "bare.tar", [("0.png", image())]), "holds no image with a label"),
        (
            write(tmp_path / "key.tar", [("0.png", image()), ("0.json", json.dumps({"class": 1}).encode())]),
            "no key 'label'",
        ),
    ):
        with pytest.raises(DataError, match=word):
            source_of(path).check()
