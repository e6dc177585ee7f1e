"""Members of untrusted tars are grouped into samples; whatever is not a plain, safe, small file is refused or
skipped."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.shards.groups import Contents, groups, read_tar
from engine.shards.writer import Quarantined, ShardBuilder
from engine.storage.tar import QUARANTINE_KEYWORD, global_header

Entry = tuple[str, bytes] | tarfile.TarInfo


def pack(*entries: Entry) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry[0])
            data = b"" if isinstance(entry, tarfile.TarInfo) else entry[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "../../../etc/passwd"
    return info


def test_adjacent_files_of_one_base_are_a_sample() -> None:
    stream = pack(
        ("a/1.jpg", b"J"), ("a/1.cls", b"3"), special("a/dir", tarfile.DIRTYPE), ("2.PNG", b"P"), ("2.json", b"{}")
    )
    found = list(groups(stream, "t"))
    assert [(group.key, sorted(group.members)) for group in found] == [("a/1", ["cls", "jpg"]), ("2", ["json", "png"])]
    member = found[0].members["jpg"]
    assert stream.getvalue()[member.offset : member.offset + member.size] == b"J"


BAD: list[tuple[Entry, str]] = [
    (("../up.png", b"x"), "unsafe name"),
    (("a/../../up.png", b"x"), "unsafe name"),
    (("/etc/passwd.png", b"x"), "unsafe name"),
    (("a\\b.png", b"x"), "no extension"),
    (("new\nline.png", b"x"), "unsafe name"),
    (("bell\x07.png", b"x"), "unsafe name"),
    (("right\u202eleft.png", b"x"), "unsafe name"),
    (("d/" * 600 + "x.png", b"x"), "unsafe name"),
    (("noextension", b"x"), "no extension"),
    ((".hidden", b"x"), "no extension"),
    (("a.pkl", b"x"), r"extension \.pkl"),
    (("a.pyd", b"x"), r"extension \.pyd"),
    (("a.pth", b"x"), r"extension \.pth"),
    (("a.png.gz", b"x"), r"extension \.png\.gz"),
    (("big.png", b"x" * 2000), "2,000 bytes, more than 1,000"),
    (special("link.png", tarfile.SYMTYPE), "symbolic link"),
    (special("link.png", tarfile.LNKTYPE), "hard link"),
    (special("dev.png", tarfile.CHRTYPE), "device"),
    (special("fifo.png", tarfile.FIFOTYPE), "pipe"),
    (("first.png", b"again"), "was there before"),
    (("first.txt", b"scattered"), "was there before"),
]


@pytest.mark.parametrize(("entry", "reason"), BAD)
def test_bad_members_are_refused_or_skipped_with_their_reason(
    entry: Entry, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = (("first.png", b"1"), ("first.cls", b"1"), ("second.png", b"2"), entry, ("third.png", b"3"))
    with pytest.raises(DataError, match=reason) as caught:
        list(groups(pack(*entries), "t.tar", max_member=1000))
    assert "\n" not in str(caught.value)
    skipped: list[tuple[str, str]] = []
    kept = groups(pack(*entries), "t.tar", skip=lambda *what: skipped.append(what), max_member=1000)
    assert [(group.key, sorted(group.members)) for group in kept] == [
        ("first", ["cls", "png"]),
        ("second", ["png"]),
        ("third", ["png"]),
    ]
    assert len(skipped) == 1
    assert not list(tmp_path.iterdir())  # nothing was extracted


def test_a_file_twice_in_one_sample() -> None:
    entries = (("a.png", b"1"), ("a.PNG", b"2"))
    with pytest.raises(DataError, match="is there twice"):
        list(groups(pack(*entries), "t"))
    (kept,) = groups(pack(*entries), "t", skip=lambda *_: None)
    assert kept.members["png"].name == "a.png"


def test_a_sparse_file_is_special() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        tar.addfile(info)
    with pytest.raises(DataError, match="special entry"):
        list(groups(buffer, "t"))


def test_other_extensions_on_request() -> None:
    (kept,) = groups(pack(("a.gif", b"1")), "t", extensions=frozenset({"gif"}))
    assert list(kept.members) == ["gif"]


@pytest.mark.parametrize("left", [2, 0])
def test_our_own_tars_tell_keys_and_quarantine(left: int) -> None:
    builder = ShardBuilder()
    entries = (Quarantined(7, 1, "low_clip_score", 3), Quarantined(9, 2, "non_finite_pixels é", 3))
    for entry in entries:
        builder.quarantine(entry)
    for number in range(left):
        builder.add(f"toy-{number:012d}", {"png": b"x", "cls": b"1"})
    keys = tuple(f"toy-{number:012d}" for number in range(left))
    assert read_tar(io.BytesIO(builder.finish().data), "t") == Contents(keys, entries)


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "[{}]", "nope", '[{"index":1,"label":1,"reason":1,"attempts":1}]', "[" * 100_000, '[{"a":1}]']
)
def test_a_damaged_quarantine_list_is_refused(text: str) -> None:
    data = global_header(QUARANTINE_KEYWORD, text) + pack(("a.png", b"1")).getvalue()
    with pytest.raises(DataError, match="damaged list of quarantined samples"):
        read_tar(io.BytesIO(data), "t")
