"""The batch size that a memory allows: the search against all powers of two, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.diffusion import batchsize
from engine.errors import ClusterError
from engine.spec import RunSpec
from engine.storage import node_cache, notes
from tests.support.outputs import digits_spec


@given(room=st.integers(0, 5000), most=st.integers(1, 2000))
def test_the_search_finds_the_largest_power_of_two(room: int, most: int) -> None:
    tried: list[int] = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= room

    fitting = [2**n for n in range(13) if 2**n <= min(room, most)]
    assert batchsize.largest(fits, most) == max(fitting, default=0)
    assert tried == [2**n for n in range(13) if 2**n <= most][: len(fitting) + 1]


class Memory:
    """Holds so many images, and counts how often it was tried."""

    def __init__(self, room: int) -> None:
        self.room, self.tries = room, 0

    def __call__(self, images: int) -> bool:
        self.tries += 1
        return images <= self.room


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_size_is_tried_once_for_a_key_and_then_remembered(own_cache: Path) -> None:
    memory, key = Memory(77), {"gpu": ["A", 1], "size": 512}
    assert [batchsize.remembered(key, memory) for _ in range(3)] == [64, 64, 64]
    assert memory.tries == 8
    assert batchsize.remembered({**key, "size": 256}, Memory(300)) == 256
    assert batchsize.remembered(key, Memory(2)) == 64
    [*files] = own_cache.rglob("*")
    assert sorted(path.suffix for path in files if path.is_file()) == [".json", ".json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": {}, "value": 4}', b'{"key": {"a": 1}, "value": 0}'])
def test_a_broken_note_is_found_again(own_cache: Path, content: bytes) -> None:
    assert batchsize.remembered({"a": 1}, Memory(8)) == 8
    [note] = own_cache.rglob("*.json")
    note.write_bytes(content)
    assert batchsize.remembered({"a": 1}, Memory(5)) == 4
    assert batchsize.remembered({"a": 1}, Memory(1)) == 4


def test_a_cache_that_cannot_be_written_to_only_costs_the_search(own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    memory = Memory(2)
    assert [batchsize.remembered({"a": 1}, memory) for _ in range(2)] == [2, 2]
    assert memory.tries == 6
    assert notes.read(batchsize.NOTE, {"a": 1}) is None


def test_where_no_image_fits_the_run_stops_and_nothing_is_remembered(own_cache: Path) -> None:
    with pytest.raises(ClusterError, match=r"resources\.batch_size: a single image does not fit .*set model\.dtype"):
        batchsize.remembered({"a": 1}, Memory(0))
    assert not own_cache.exists()


def spec(batch_size: Any, **generate: Any) -> RunSpec:
    return digits_spec(Path("model"), generate, resources={"batch_size": batch_size})


@pytest.mark.parametrize(
    ("asked", "shard", "size"), [("auto", 1000, 16), ("auto", 10, 10), (32, 1000, 32), (32, 20, 20), (4, 20, 4)]
)
def test_on_a_cpu_nothing_is_tried(asked: Any, shard: int, size: int) -> None:
    memory = Memory(0)
    assert batchsize.choose(spec(asked, shard_size=shard), "cpu", "digest", None, memory) == size
    assert memory.tries == 0


def test_what_takes_memory_is_part_of_the_key() -> None:
    plain = batchsize.settings(spec("auto"))
    for other in (
        spec("auto", guidance_scale=1.0),
        spec("auto", strength=0.5, pairing="own"),
        spec("auto", cache_interval=2),
        digits_spec(Path("model"), images={"size": 16}),
        digits_spec(Path("model"), model={"checkpoint": "model", "dtype": "bfloat16"}),
        digits_spec(Path("model"), resources={"fast": {"decode_batch": 1}}),
    ):
        assert batchsize.settings(other) != plain
    assert batchsize.settings(spec("auto", count=7, negative_prompt="x", num_inference_steps=9)) == plain
