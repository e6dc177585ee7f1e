"""The image folder: every kind of entry, hostile names, links, and faults found before any image is opened."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.sources import Place, Ref, Rejected, open_sets
from engine.images.sources.folder import Folder, read_regular
from engine.images.sources.source import decode_name, encode_name
from engine.spec import validate
from engine.spec.recipe import FolderSource, ImagesSpec
from engine.storage.claim import claim
from engine.storage.store import open_store
from tests.support.images import mixed_folder, plain_folder, save

IMAGES = ImagesSpec(size=32)
PNG = save(Image.new("RGB", (16, 16)), "PNG")


def source_of(path: Path, test_path: Path | None = None) -> dict[str, Folder]:
    spec = FolderSource(kind="folder", path=str(path), test_path=str(test_path) if test_path else None)
    return dict(open_sets(spec, IMAGES))


def entries(source: Folder) -> dict[str, Ref | Rejected]:
    listed = [entry for group in source.scan() for entry in group]
    assert len({entry.key for entry in listed}) == len(listed)
    return {entry.key: entry for entry in listed}


def test_every_entry_is_listed_once_with_its_class(tmp_path: Path) -> None:
    made = mixed_folder(tmp_path / "set", per_class=60, bad=0.3)
    source = source_of(made.path)[""]
    source.check()
    found = entries(source)
    assert {decode_name(key) for key in found} == made.good.keys() | made.bad.keys()
    assert all(entry.label == key.split("/")[0] for key, entry in found.items())
    early = {"empty_file", "not_a_file", "broken_link", "link_outside"}
    for name, reason in made.bad.items():
        entry = found[encode_name(name)]
        assert (entry.reason == reason) if reason in early else isinstance(entry, Ref)


def test_bytes_are_the_files_own(tmp_path: Path) -> None:
    made = mixed_folder(tmp_path / "set", per_class=20)
    source = source_of(made.path)[""]
    refs = [entry for entry in entries(source).values() if isinstance(entry, Ref)]
    read = dict(source.read([ref.place for ref in refs]))
    for i, ref in enumerate(refs):
        assert read[i] == (made.path / decode_name(ref.place.uri)).read_bytes()


def test_hidden_files_and_loose_files_are_no_images(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=2)
    for name in ("README.md", ".DS_Store", "a/.DS_Store", "a/Thumbs.db", "b/._0000.png"):
        (root / name).write_bytes(b"x")
    for name in (".git", "__MACOSX", "a/.ipynb_checkpoints"):
        (root / name).mkdir()
        (root / name / "x.png").write_bytes(PNG)
    (root / "a/deep/er").mkdir(parents=True)
    (root / "a/deep/er/x.png").write_bytes(PNG)
    source = source_of(root)[""]
    assert source.class_names == ("a", "b")
    assert sorted(entries(source)) == ["a/0000.png", "a/0001.png", "a/deep/er/x.png", "b/0000.png", "b/0001.png"]


HOSTILE = [
    b"-rf.png",
    b"new\nline.png",
    b"tab\t.png",
    b"\xff\xfe.png",
    "é.png".encode(),
    b"e\xcc\x81.png",
    b"%41.png",
    b"A.png",
    b"a:b.png",
    b"{000..9}.png",
    b"x" * 250 + b".png",
    "\u202egnp.png".encode(),
    b"..png",
    b"a b.png",
    "猫.png".encode(),
]


def test_hostile_names_keep_distinct_printable_keys(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=1)
    hostile = [name for name in HOSTILE if not name.startswith(b".")]
    for number, name in enumerate(hostile):
        (root / "a" / os.fsdecode(name)).write_bytes(PNG + bytes([number]))
    source = source_of(root)[""]
    found = entries(source)
    assert len(found) == len(hostile) + 2
    assert all(key.isprintable() for key in found)
    pa.array(list(found), pa.string()).validate(full=True)
    refs = [entry for entry in found.values() if isinstance(entry, Ref)]
    assert {data[-1] for data in dict(source.read([ref.place for ref in refs])).values()} >= set(range(len(hostile)))


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b))
def test_name_encoding_is_reversible(name: bytes) -> None:
    text = encode_name(name)
    assert text.isprintable()
    assert ":" not in text
    assert os.fsencode(decode_name(text)) == name


def test_links_stay_inside(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=1)
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "a/in.png").symlink_to("0000.png")
    (root / "a/out.png").symlink_to(tmp_path / "secret.png")
    (root / "a/loop.png").symlink_to("loop.png")
    (root / "a/up").symlink_to("..")
    found = entries(source_of(root)[""])
    assert isinstance(found["a/in.png"], Ref)
    assert {key: entry.reason for key, entry in found.items() if isinstance(entry, Rejected)} == {
        "a/out.png": "link_outside",
        "a/loop.png": "broken_link",
        "a/up": "not_a_file",
    }
    (root / "c").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leaves"):
        source_of(root)[""].check()


def test_a_pipe_that_takes_a_files_place_does_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "x.jpg"
    os.mkfifo(pipe)
    answers: list[bytes | BadImage] = []
    thread = threading.Thread(target=lambda: answers.append(read_regular(pipe, 1000)), daemon=True)
    thread.start()
    thread.join(5)
    assert answers
    assert answers[0].reason == "not_a_file"
    assert read_regular(tmp_path / "gone.png", 1000).reason == "unreadable"
    (tmp_path / "grown.png").write_bytes(bytes(1001))
    assert read_regular(tmp_path / "grown.png", 1000).reason == "too_large_file"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_file_without_permission_is_unreadable(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    path = folder / "x.png"
    path.write_bytes(PNG)
    path.chmod(0)
    os.seteuid(65534)
    try:
        made = read_regular(path, 1000)
    finally:
        os.seteuid(0)
    assert made.reason == "unreadable"
    assert "denied" in made.detail.lower()


def test_large_files_are_refused_without_reading(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=1)
    with (root / "a/huge.png").open("wb") as file:
        file.truncate(200 * 2**20)
    assert entries(source_of(root)[""])["a/huge.png"].reason == "too_large_file"


def _files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(PNG)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ((), "does not exist"),
        (("set",), "not a folder"),
        (("set/",), "is empty"),
        (("set/x.png", "set/y.png"), "no class folders"),
        (("set/a/x.png", "set/b/"), "class folder b is empty"),
        (("set/a/x.png", "set/b/.hidden"), "class folder b is empty"),
        (("set/a/x.png",), "one class only"),
        (("set/a/x.png", "set/A/y.png"), "differ only in case"),
        (("set/é/x.png", "set/e\u0301/y.png"), "differ only in case"),
        (("set/a\nb/x.png", "set/b/y.png"), "unprintable"),
        (("set/train/a/x.png", "set/test/a/x.png"), "parts of a set"),
    ],
)
def test_structural_faults_are_one_line(tmp_path: Path, names: tuple[str, ...], word: str) -> None:
    _files(tmp_path, *names)
    with pytest.raises(DataError, match=word) as caught:
        source_of(tmp_path / "set")[""].check()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_classes_of_the_test_set_must_be_known(tmp_path: Path) -> None:
    _files(tmp_path, "set/a/x.png", "set/b/y.png", "test/a/x.png", "test/c/y.png")
    sets = source_of(tmp_path / "set", tmp_path / "test")
    sets[""].check()
    with pytest.raises(DataError, match="class folder c is no class"):
        sets["test"].check()
    with pytest.raises(DataError, match=r"source.test_path.*does not exist"):
        source_of(tmp_path / "set", tmp_path / "nowhere")


def test_the_check_does_not_read_a_large_folder(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=1)
    for i in range(5_000):
        os.mknod(root / "a" / f"{i}.png")
    started = time.process_time()
    source_of(root)[""].check()
    assert time.process_time() - started < 0.5
    assert sum(len(group) for group in source_of(root)[""].scan()) == 5_002


def test_a_place_outside_the_catalog_is_read_as_it_lies(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=2)
    source = source_of(root)[""]
    read = dict(source.read([Place("b/0001.png"), Place("a/none.png"), Place("a/0000.png")]))
    assert read[0] == (root / "b/0001.png").read_bytes()
    assert read[1].reason == "unreadable"
    assert np.asarray(Image.open(root / "a/0000.png")).shape == (16, 16, 3)
    assert read[2] == (root / "a/0000.png").read_bytes()


def test_files_beside_images_are_passed_over_and_counted(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=3)
    for name in "ab":
        for i in range(3):
            (root / name / f"{i:04d}.txt").write_text("a caption")
            (root / name / f"{i:04d}.JSON").write_text("{}")
        (root / name / "@eaDir/0000.png").mkdir(parents=True)
        (root / name / "@eaDir/0000.png/SYNOPHOTO_THUMB_M.jpg").write_bytes(PNG)
        (root / name / "._0000.png").write_bytes(b"\x00\x05\x16\x07")
    for name in ("$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX", ".Trash-1000"):
        (root / name).mkdir()
        (root / name / "x.png").write_bytes(PNG)
    source = source_of(root)[""]
    source.check()
    assert source.class_names == ("a", "b")
    assert sorted(entries(source)) == [f"{name}/{i:04d}.png" for name in "ab" for i in range(3)]
    assert source.skipped == {".txt file": 6, ".json file": 6}
    (root / "c").mkdir()
    (root / "c/x.txt").write_text("no image")
    with pytest.raises(DataError, match="class folder c holds no image"):
        source_of(root)[""].check()


def test_own_outputs_beside_the_classes_are_left_out(tmp_path: Path) -> None:
    root = plain_folder(tmp_path / "set", per_class=2)
    spec = validate({"name": "x", "source": {"kind": "digits"}})
    for place in ("runs/x", "runs/y", "out"):
        claim(open_store(root / place), spec)
        (root / place / "data").mkdir()
    (root / "runs/.DS_Store").write_bytes(b"x")
    source = source_of(root)[""]
    source.check()
    assert (source.class_names, len(entries(source))) == (("a", "b"), 4)
    (root / "runs/z.png").write_bytes(PNG)  # a class after all
    assert source_of(root)[""].class_names == ("a", "b", "runs")
