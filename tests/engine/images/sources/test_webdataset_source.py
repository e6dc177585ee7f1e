"""WebDataset tars, compared with the webdataset library's own reading of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from engine.errors import DataError
from engine.images.sources import Ref, Rejected, open_sets
from engine.images.sources.webdataset import Tars
from engine.spec.models import ImagesSpec, WebDatasetSource
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
        ("0.png", image()), ("0.json", b'{"label": 3}'),
        ("1.png", image()), ("1.json", b'{"label": "cat"}'),
        ("2.png", image()), ("2.json", b'{"other": 1}'),
        ("3.png", image()), ("3.json", b"{"),
        ("4.png", image()), ("4.json", b'{"label": NaN}'),
        ("5.png", image()), ("5.json", b"[" * 100_000),
        ("6.png", image()), ("6.cls", b" tabby cat\n"), ("6.json", b'{"label": 9}'),
        ("7.png", image()), ("7.cls", b"-1"),
        ("8.png", image()),
        ("9.png", image()), ("9.cls", b"\xff\xfe"),
    ]  # fmt: skip
    made = [e.label if isinstance(e, Ref) else e.reason for e in entries(source_of(write(tmp_path / "x.tar", members)))]
    bad = "bad_label"
    assert made == [3, "cat", "no_label", bad, bad, bad, "tabby cat", "no_label", "no_label", bad]
    other = entries(source_of(tmp_path / "x.tar", label_key="other"))
    assert other[2].label == 1


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
            ("../../up.png", image()), ("../../up.cls", b"1"),
            ("big.png", bytes(100_001)), ("big.cls", b"1"),
            ("zero.png", b""), ("zero.cls", b"1"),
            ("new\nline.PNG", image()), ("new\nline.cls", b"1"),
            ("words.txt", b"x"), ("words.cls", b"1"),
            ("evil.pyd", b"x"), ("evil.cls", b"1"),
            ("../../up.png", image()), ("../../up.cls", b"1"),
            ("._up.png", b"x"),
        ):  # fmt: skip
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
    import gzip

    (tmp_path / "z.tar").write_bytes(gzip.compress(packed.read_bytes()))
    for path, word in (
        (tmp_path / "z.tar", "compressed with gzip"),
        (write(tmp_path / "none.tar", []), "holds no image"),
        (write(tmp_path / "bare.tar", [("0.png", image())]), "has no label"),
        (
            write(tmp_path / "key.tar", [("0.png", image()), ("0.json", json.dumps({"class": 1}).encode())]),
            "no key 'label'",
        ),
    ):
        with pytest.raises(DataError, match=word):
            source_of(path).check()
