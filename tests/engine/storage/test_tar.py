"""The tar scanner agrees with tarfile on good archives and refuses every damaged one."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.storage.tar import Scan

FORMATS = [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
LONG = "a" * 60 + "/" + "b" * 90 + "/" + "c" * 120 + ".png"


def pack(members: list[tuple[str, bytes]], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def scanned(data: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, data[m.offset : m.offset + m.size]) for m in Scan(io.BytesIO(data), "t.tar") if m.kind == "file"]


names = st.one_of(
    st.from_regex(r"[a-z0-9]{1,20}\.(png|cls|json)", fullmatch=True), st.sampled_from([LONG, "é/ü.png", "x" * 101])
)


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=6), st.sampled_from(FORMATS[1:]))
def test_reads_what_tarfile_wrote(members: list[tuple[str, bytes]], kind: int) -> None:
    assert scanned(pack(members, kind)) == members


def test_reads_ustar_prefixes() -> None:
    name = "p" * 90 + "/" + "n" * 80 + ".png"
    assert scanned(pack([(name, b"1"), ("b.cls", b"2")], tarfile.USTAR_FORMAT)) == [(name, b"1"), ("b.cls", b"2")]


def test_names_the_kind_of_every_entry() -> None:
    kinds = {
        tarfile.DIRTYPE: "folder",
        tarfile.SYMTYPE: "symbolic link",
        tarfile.LNKTYPE: "hard link",
        tarfile.CHRTYPE: "device",
        tarfile.BLKTYPE: "device",
        tarfile.FIFOTYPE: "pipe",
        b"Z": "special entry",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"m{number}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert [member.kind for member in Scan(io.BytesIO(buffer.getvalue()), "t")] == list(kinds.values())


def test_every_cut_is_found() -> None:
    data = pack([(f"{i}.png", b"x" * 600) for i in range(4)], tarfile.USTAR_FORMAT)
    end = 4 * (512 + 1024)
    for cut in range(0, end + 1024, 64):  # member boundaries among them
        with pytest.raises(DataError):
            scanned(data[:cut])
    assert len(scanned(data[: end + 1024])) == 4


def test_every_changed_header_byte_is_found_or_harmless() -> None:
    members = [(f"{i}.png", bytes([i]) * 10) for i in range(3)]
    data = bytearray(pack(members, tarfile.USTAR_FORMAT))
    for position in range(1024, 1536):
        data[position] ^= 0x55
        try:
            assert scanned(bytes(data)) == members  # only a byte of the checksum's own trailer may pass
            assert 1024 + 154 <= position < 1024 + 156
        except DataError:
            pass
        data[position] ^= 0x55


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_random_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(DataError):
        scanned(data + b"\1")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * 512 - 1), st.integers(0, 255), st.sampled_from(FORMATS))
def test_random_changes_never_crash(position: int, byte: int, kind: int) -> None:
    name = LONG if kind != tarfile.USTAR_FORMAT else "p" * 90 + "/" + "n" * 80 + ".png"
    data = bytearray(pack([(name, b"x" * 600), ("é.png", b"")], kind))
    data[position] = byte
    with contextlib.suppress(DataError):
        assert len(scanned(bytes(data))) <= 2


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b" + bytes(600), "is compressed"),
        (b"<html>" + b"x" * 600, "is not a tar"),
        (bytes(512), "is cut short"),
    ],
)
def test_says_what_is_wrong(data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        scanned(data)


def test_an_empty_archive_is_whole() -> None:
    assert scanned(bytes(10240)) == []


def test_size_fields_beyond_the_file_allocate_nothing() -> None:
    data = bytearray(pack([("a.png", b"x")], tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (2**60).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(DataError, match=r"cut short inside 'a.png'"):
        scanned(bytes(data))


def test_lenient_reads_what_tarfile_reads_of_a_cut_archive() -> None:
    data = pack([(f"{i}.png", b"x" * 600) for i in range(4)], tarfile.USTAR_FORMAT)
    for cut in range(512, 4 * (512 + 1024) + 2048, 512):
        whole = []
        with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(data[:cut])) as tar:
            for info in tar:
                if info.offset_data + info.size <= cut:
                    whole.append((info.name, info.offset_data, info.size))
        found = list[tuple[str, int, int]]()
        with contextlib.suppress(DataError):
            for member in Scan(io.BytesIO(data[:cut]), "t", lenient=True):
                found.append((member.name, member.offset, member.size))
        assert len(whole) - 1 <= len(found) <= len(whole)  # the last one may lack its padding
        assert found == whole[: len(found)]


@pytest.mark.parametrize("format", ["oldgnu", "posix"])
def test_sparse_entries_hide_nothing_behind_them(tmp_path: Path, format: str) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        for i in range(40):  # more pieces than a header has room for
            file.seek(i << 16)
            file.write(b"x" * 4096)
        file.truncate(1 << 23)
    (tmp_path / "b.png").write_bytes(b"behind")
    options = ["--sparse", "--hole-detection=raw", f"--format={format}"]
    subprocess.run(["tar", *options, "-cf", "x.tar", "a.bin", "b.png"], cwd=tmp_path, check=True)
    with (tmp_path / "x.tar").open("rb") as file:
        found = list(Scan(file, "t"))
        assert [member.kind for member in found] == ["special entry", "file"]
        file.seek(found[1].offset)
        assert file.read(found[1].size) == b"behind"


@pytest.mark.parametrize("blocks", [1, 20, 4096])
def test_an_archive_behind_another_is_found(tmp_path: Path, blocks: int) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        subprocess.run(["tar", "-b", str(blocks), "-cf", f"{name}.tar", f"{name}.png"], cwd=tmp_path, check=True)
    first, second = ((tmp_path / f"{name}.tar").read_bytes() for name in "ab")
    scan = Scan(io.BytesIO(first + second), "t", lenient=True)
    assert [member.name for member in scan] == ["a.png"]
    assert scan.next_archive() == len(first)
    behind = Scan(io.BytesIO(first + second), "t", start=len(first), lenient=True)
    assert [member.name for member in behind] == ["b.png"]
    assert behind.next_archive() is None
