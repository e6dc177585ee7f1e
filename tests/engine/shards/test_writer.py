"""Shards are byte for byte what the standard library's tarfile writes for the same members."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.shards.writer import Quarantined, ShardBuilder
from engine.storage.tar import QUARANTINE_KEYWORD, global_header, header

keys = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,30}-[0-9]{12}", fullmatch=True)
contents = st.dictionaries(st.sampled_from(["png", "jpg", "cls", "json", "txt"]), st.binary(max_size=1500), min_size=1)


def build(samples: dict[str, dict[str, bytes]], quarantined: tuple[Quarantined, ...] = ()) -> bytes:
    builder = ShardBuilder()
    for key, files in samples.items():
        builder.add(key, files)
    for entry in quarantined:
        builder.quarantine(entry)
    return builder.finish().data


def stock(samples: dict[str, dict[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in sorted(samples):
            for extension in sorted(samples[key]):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode, info.mtime = len(samples[key][extension]), 0o644, 0
                tar.addfile(info, io.BytesIO(samples[key][extension]))
    return buffer.getvalue()


@settings(deadline=None)
@given(st.dictionaries(keys, contents, max_size=8))
def test_bytes_equal_those_of_tarfile(samples: dict[str, dict[str, bytes]]) -> None:
    assert build(samples) == stock(samples)


def test_order_of_adding_does_not_matter() -> None:
    samples = {f"toy-{i:012d}": {"png": bytes([i]) * i, "cls": b"1", "json": b"{}"} for i in range(40)}
    entries = tuple(Quarantined(100 + i, 0, "bad", 3) for i in range(5))
    expected = build(samples, entries)
    for seed in range(5):
        order = list(samples)
        random.Random(seed).shuffle(order)
        shuffled = {key: dict(reversed(samples[key].items())) for key in order}
        assert build(shuffled, entries[::-1]) == expected


def test_finish_says_what_was_built() -> None:
    builder = ShardBuilder()
    builder.add("toy-000000000001", {"png": b"x", "cls": b"3"})
    built = builder.finish()
    assert (built.count, built.sha256) == (1, hashlib.sha256(built.data).hexdigest())
    assert len(built.data) % 10240 == 0


def test_large_members_are_pieces_of_their_own_and_small_ones_are_joined() -> None:
    builder, image = ShardBuilder(), bytes(range(256)) * 400
    samples = {f"toy-{i:012d}": {"jpg": image, "cls": b"1", "txt": b"x" * 300} for i in range(5)}
    for key, files in samples.items():
        builder.add(key, files)
    built = builder.finish()
    assert built.data == stock(samples)
    assert built.size == len(built.data)
    assert sum(piece is image for piece in built.pieces) == 5
    assert len(built.pieces) <= 12


@settings(deadline=None)
@given(st.integers(1, 5000), st.text(st.characters(codec="ascii", exclude_characters="\n\0"), max_size=50))
def test_global_header_equals_that_of_tarfile(repeat: int, text: str) -> None:
    value = text + "v" * repeat  # lengths around powers of ten, where the length counts its own digits
    expected = tarfile.TarInfo.create_pax_global_header({QUARANTINE_KEYWORD: value})
    assert global_header(QUARANTINE_KEYWORD, value) == expected


@pytest.mark.parametrize("mode", ["r:", "r|"])
@pytest.mark.parametrize("left", [3, 0])
def test_quarantined_entries_travel_in_the_tar(mode: str, left: int) -> None:
    samples = {f"toy-{i:012d}": {"png": b"x", "cls": b"1"} for i in range(left)}
    entries = tuple(Quarantined(50 + i, 7, 'low "score" é\n', 3) for i in range(30))
    with tarfile.open(fileobj=io.BytesIO(build(samples, entries)), mode=mode) as tar:
        names = [member.name for member in tar if member.isreg()]
        stored = json.loads(tar.pax_headers[QUARANTINE_KEYWORD])
    assert names == [f"{key}.{extension}" for key in samples for extension in ("cls", "png")]
    assert stored == [{"index": 50 + i, "label": 7, "reason": 'low "score" é\n', "attempts": 3} for i in range(30)]


@pytest.mark.parametrize(
    ("key", "files"),
    [
        ("../up", {"png": b""}),
        ("a/b", {"png": b""}),
        ("a.b", {"png": b""}),
        ("", {"png": b""}),
        ("a" * 101, {"png": b""}),
        ("é", {"png": b""}),
        ("a", {}),
        ("a", {"PNG": b""}),
        ("a", {"png.gz": b""}),
        ("a", {"p/ng": b""}),
    ],
)
def test_names_that_do_not_fit_are_refused(key: str, files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ShardBuilder().add(key, files)


def test_repeats_are_refused() -> None:
    builder = ShardBuilder()
    builder.add("a", {"png": b""})
    with pytest.raises(ValueError, match="twice"):
        builder.add("a", {"png": b""})
    builder.quarantine(Quarantined(1, 0, "bad", 1))
    with pytest.raises(ValueError, match="twice"):
        builder.quarantine(Quarantined(1, 0, "bad", 1))


def test_long_reasons_are_cut() -> None:
    builder = ShardBuilder()
    builder.quarantine(Quarantined(1, 0, "x" * 10_000, 1))
    assert builder.quarantined == (Quarantined(1, 0, "x" * 300, 1),)


def test_sizes_beyond_the_format_are_refused() -> None:
    assert header(b"a.png", 8**11 - 1)[124:136] == b"77777777777\0"
    with pytest.raises(ValueError, match="USTAR"):
        header(b"a.png", 8**11)
