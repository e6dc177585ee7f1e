"""Image sets that lie about themselves: sizes, shapes, labels, pipes and devices in the place of files, outputs among
images."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from tests.bad_inputs.attacks import Attack, check_attack
from tests.support.images import picture, plain_folder, save

Members = Sequence[tuple[str, bytes]]
ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


def image() -> bytes:
    return save(Image.fromarray(picture(RNG, 16, 16)), "PNG")


def good(count: int = 8) -> list[tuple[str, bytes]]:
    return [(f"{i}.{e}", image() if e == "png" else b"%d" % (i % 2)) for i in range(count) for e in ("png", "cls")]


def tar(members: Members, **fields: object) -> bytes:
    """The bytes of a tar; `fields` are set on the last member's header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, (name, data) in enumerate(members, 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items() if number == len(members) else ():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sized(members: Members, size: bytes) -> bytes:
    """A tar whose last header holds `size` in its size field, with a right checksum."""
    data = bytearray(tar(members))
    at = len(tar(members[:-1]).rstrip(b"\0"))
    at += -at % 512
    data[at + 124 : at + 136] = size.ljust(12, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def sparse(pax: dict[str, str], content: bytes) -> bytes:
    """A tar with good samples, then a PAX entry that says that it is sparse."""
    return tar([*good(), ("9.png", content)], pax_headers=pax)


def pack(arrays: dict[str, tuple[dict, bytes | int]]) -> bytes:
    """A .npz of arrays with the headers that are given; a number stands for so many MiB of zeros, packed as one can."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(b"")
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = first.compress(bytes(1 << 20)) + first.flush(zlib.Z_FULL_FLUSH)
    body, index = b"", b""
    for name, (head, content) in arrays.items():
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, head)
        begin = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = begin.compress(header.getvalue()) + begin.flush(zlib.Z_FULL_FLUSH)
        if isinstance(content, int):
            data += zeros * content + b"\x03\0"
            size = len(header.getvalue()) + (content << 20)
        else:
            end = zlib.compressobj(9, zlib.DEFLATED, -15)
            data += end.compress(content) + end.flush()
            size = len(header.getvalue()) + len(content)
        crc = zlib.crc32(header.getvalue() + content) if isinstance(content, bytes) else 0
        facts = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(data), size, len(name) + 4, 0)
        index += (
            b"PK\1\2"
            + struct.pack("<H", 20)
            + facts
            + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
            + f"{name}.npy".encode()
        )
        body += b"PK\3\4" + facts + f"{name}.npy".encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(arrays), len(arrays), len(index), len(body), 0)
    return body + index + b"PK\5\6" + end


def npz(**changes: tuple[tuple[int, ...], str, bytes | int]) -> bytes:
    """A MedMNIST file of six images a part; `changes` are (shape, type, content) by name."""
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = ((6, 28, 28), "|u1", bytes(6 * 28 * 28))
        arrays[f"{part}_labels"] = ((6, 1), "|u1", bytes([0, 1] * 3))
    heads = {**arrays, **changes}
    return pack({n: ({"descr": d, "fortran_order": False, "shape": s}, c) for n, (s, d, c) in heads.items()})


def parquet(path: Path, images: pa.Array, labels: pa.Array, **options: object) -> None:
    metadata = options.pop("metadata", None)
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)


def many_rows(path: Path) -> None:
    """Ten million rows without an image in one row group."""
    rows = 10_000_000
    parquet(path, pa.nulls(rows, pa.binary()), pa.array(np.zeros(rows, np.int8)), row_group_size=rows)


def padded(path: Path) -> None:
    """An image of 300 MB that packs to nothing."""
    rows = pa.array([bytes(300 << 20), image(), image(), image()], pa.large_binary())
    parquet(path, rows, pa.array([0, 1, 0, 1]), use_dictionary=False, compression="zstd")


def nested(path: Path) -> None:
    rows = pa.array([image() for _ in range(8)], pa.binary())
    parquet(path, rows, pa.array([0, 1] * 4), metadata={"huggingface": "[" * 200_000})


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def row(
    name: str,
    file: str,
    make: bytes | Callable[[Path], object],
    codes: tuple[int, ...],
    *says: str,
    source: str = "",
    verb: tuple[str, ...] = ("plan",),
    settings: str = "",
) -> Attack:
    """A row: a recipe whose source is the folder `set`, or `source`, with one file in it."""
    kinds = {".tar": "webdataset", ".parquet": "parquet", ".npz": "medmnist", ".mat": "usps"}
    kind = kinds.get(Path(file).suffix, "folder")
    path = source or (f"set/{file}" if kind in ("medmnist", "usps") else "set")

    def lay(folder: Path) -> None:
        target = folder / "set" / file
        target.parent.mkdir(parents=True)
        if isinstance(make, bytes):
            target.write_bytes(make)
        else:
            make(target)
        text = (
            f"name: bad\nimages: {{size: 16}}\nsource: {{kind: {kind}, path: "
            f"'{path}'}}\npretrain: {{held_out: 0}}\n{settings}"
        )
        (folder / "recipe.yaml").write_text(text)

    return Attack(name, (verb[0], "recipe.yaml", *verb[1:]), codes, says, make=lay)


def labels(label: str) -> bytes:
    fields = [(f"{i}.json", f'{{"label": {label}}}'.encode()) for i in range(4)]
    return tar([member for i in range(4) for member in ((f"{i}.png", image()), fields[i])])


PAX = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "9.png", "GNU.sparse.realsize": "4096"}
DIGITS = "9" * 5000
SOURCES = [
    row("tar, negative size", "a.tar", sized([*good(), ("9.png", image())], b"\xff" * 12), (0,)),
    row("tar, negative octal size", "a.tar", sized([*good(), ("9.png", image())], b"-0000001000"), (0,)),
    row("tar, negative size first", "a.tar", sized([("9.png", image())], b"\xff" * 12), (3,), "is not a tar"),
    row("tar, size of an exabyte", "a.tar", sized([*good(), ("9.png", image())], b"\x80" + b"\1" * 11), (0,)),
    row("tar, sparse map of letters", "a.tar", sparse(PAX, b"letters\n".ljust(512, b"x")), (0,)),
    row(
        "tar, sparse numbers of letters", "a.tar", sparse({"GNU.sparse.size": "x", "GNU.sparse.map": "a,b"}, b""), (0,)
    ),
    row("tar, size of letters", "a.tar", sparse({"size": "letters"}, b"x"), (0,)),
    row("tar, label of 5,000 digits", "a.tar", labels(DIGITS), (3,), "no image with a label"),
    row("tar, text label of 5,000 digits", "a.tar", labels(f'"{DIGITS}"'), (3,), "200 bytes"),
    row("tar, label nested 200,000 deep", "a.tar", labels("[" * 200_000), (3,), "no image with a label"),
    row("tar, a pipe", "a.tar", pipe, (3,), "set holds no .tar file"),
    row("tar, a device", "a.tar", device, (3,), "set holds no .tar file"),
    row("tar, a pipe that is named", "a.tar", pipe, (3,), "regular file", source="set/a.tar"),
    row("tar, braces for 10^12 names", "a.tar", tar(good()), (3,), "over 100,000", source="set/{0..999999999999}.tar"),
    row("tar, braces that do not close", "a.tar", tar(good()), (3,), "do not close", source="set/{0..9.tar"),
    row("glob with 100 stars", "a.tar", tar(good()), (3,), "Invalid pattern", source=f"set/{'*' * 100}/*.tar"),
    row("glob with 100 folders of any depth", "a.tar", tar(good()), (0,), source=f"set/{'**/' * 100}*.tar"),
    row("parquet, many equal labels", "a.parquet", many_rows, (3,), "10,000,000 rows in"),
    row("parquet, gigabytes in a kilobyte", "a.parquet", padded, (3,), "unpacks from"),
    row("parquet, metadata nested 200,000 deep", "a.parquet", nested, (0,)),
    row("parquet, a pipe", "a.parquet", pipe, (3,), "regular file", source="set/a.parquet"),
    row("parquet, a device", "a.parquet", device, (3,), "holds no .parquet file"),
    row("npz, 10^12 labels", "a.npz", npz(train_labels=((10**12,), "<i8", b"")), (3,), "does not fit"),
    row("npz, images past int64", "a.npz", npz(train_images=((2**40, 2**20, 2**20), "|u1", b"")), (3,), "does not fit"),
    row("npz, a negative shape", "a.npz", npz(train_images=((-6, 28, -28), "|u1", bytes(4704))), (3,), "does not fit"),
    row("npz, 3 GB of labels in 3 MB", "a.npz", npz(train_labels=((3000 << 20,), "|u1", 3000)), (3,), "unpack to"),
    row("npz, 3 GB of images in 3 MB", "a.npz", npz(val_images=((3000, 1024, 1024), "|u1", 3000)), (3,), "unpack to"),
    row("npz, a pipe", "a.npz", pipe, (3,), "regular file"),
    row(
        "mat, a table that is larger than the set",
        "a.mat",
        lambda p: savemat(p, {"usps_all": np.zeros((1 << 17, 257), np.uint8)}, do_compression=True),
        (3,),
        "has the shape",
    ),
    row("mat, a pipe", "a.mat", pipe, (3,), "regular file"),
]


@pytest.mark.parametrize("attack", SOURCES, ids=lambda attack: attack.name)
def test_sources(attack: Attack, tmp_path: Path) -> None:
    check_attack(attack, tmp_path)


def photos(file: Path) -> None:
    plain_folder(file.parent.parent / "photos")
    file.write_bytes(b"")


def shards(file: Path) -> None:
    for number in range(2):
        (file.parent / f"{number}.tar").write_bytes(tar(good()))


OUTPUTS = [
    row(
        "output in a class folder",
        "x",
        photos,
        (2,),
        "source.path",
        source="photos",
        verb=("generate", "--output", "photos/a/out"),
    ),
    row(
        "output beside the classes",
        "x",
        photos,
        (2,),
        "source.path",
        source="photos",
        verb=("generate", "-o", "photos/new"),
    ),
    row("output is the source", "x", photos, (2,), "source.path", source="photos", verb=("run", "-o", "photos")),
    row("default output inside the source", "x", photos, (2,), "runs/bad", source=".", verb=("plan",)),
    row(
        "output by a link into the source",
        "x",
        lambda p: (photos(p), (p.parent / "in").symlink_to("../photos")),
        (2,),
        "source.path",
        source="photos",
        verb=("run", "-o", "set/in/new"),
    ),
    row("output among tars", "0.tar", shards, (2,), "source.path", verb=("condition", "-o", "set/out")),
    row(
        "output below a glob of any depth",
        "0.tar",
        shards,
        (2,),
        "source.path",
        source="set/**/*.tar",
        verb=("condition", "-o", "set/out"),
    ),
]


@pytest.mark.parametrize("attack", OUTPUTS, ids=lambda attack: attack.name)
def test_outputs(attack: Attack, tmp_path: Path) -> None:
    check_attack(attack, tmp_path)


@pytest.mark.parametrize("verb", ["plan", "status", "verify"])
def test_terminals_that_are_not_utf8(verb: str, tmp_path: Path) -> None:
    plain_folder(tmp_path / "photos", classes=("猫", "fox 🦊"))
    recipe = {"name": "cats", "images": {"size": 16}, "source": {"kind": "folder", "path": "photos"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "猫").mkdir()
    arguments = {"plan": "recipe.yaml", "status": "猫", "verify": "猫"}.get(verb)
    environment = {
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", verb, *([arguments] if arguments else [])],
        cwd=tmp_path,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    said = (done.stdout + done.stderr).decode("ascii")
    assert "Traceback" not in said
    assert done.returncode == {"status": 3, "verify": 3}.get(verb, 0), said
    if verb == "plan":
        assert r"\u732b" in said or r"\U0001f98a" in said
    elif arguments:
        assert r"\u732b" in said
