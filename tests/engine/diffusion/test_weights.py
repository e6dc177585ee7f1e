"""Safetensors files: broken ones, NaN in every place, and digests."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.diffusion import weights
from engine.errors import ConfigError


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.safetensors"
    save_file({"a.weight": torch.randn(7, 5), "b.ids": torch.arange(4), "c.half": torch.randn(3).half()}, path)
    return path


def test_header_lists_every_tensor_with_shape_and_type(sound: Path) -> None:
    header = weights.read_header(sound)
    assert {name: (tensor.shape, tensor.dtype, tensor.size) for name, tensor in header.items()} == {
        "a.weight": ((7, 5), "F32", 35),
        "b.ids": ((4,), "I64", 4),
        "c.half": ((3,), "F16", 3),
    }


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_cut_file_is_refused(sound: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(sound.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"cut\.safetensors: is (empty|not a whole)"):
        weights.read_header(cut)


@pytest.mark.parametrize("place", [0, 9, 30])
def test_a_corrupt_header_is_refused(sound: Path, tmp_path: Path, place: int) -> None:
    data = bytearray(sound.read_bytes())
    data[place] ^= 0xFF
    corrupt = tmp_path / "corrupt.safetensors"
    corrupt.write_bytes(data)
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        weights.read_header(corrupt)


def test_a_file_without_tensors_and_an_odd_type_are_refused(tmp_path: Path) -> None:
    empty, odd = tmp_path / "empty.safetensors", tmp_path / "odd.safetensors"
    save_file({}, empty)
    save_file({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, odd)
    with pytest.raises(ConfigError, match="holds no tensors"):
        weights.read_header(empty)
    with pytest.raises(ConfigError, match="unsupported type F8_E4M3"):
        weights.read_header(odd)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.safetensors: cannot be read"):
        weights.read_header(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_anywhere_is_found_and_named(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    tensor = torch.randn(1000).to(dtype)
    for place in (0, 517, 999):
        broken = tensor.clone()
        broken[place] = bad
        path = tmp_path / f"broken-{place}.safetensors"
        save_file({"good": tensor, "sub.bad": broken}, path)
        with pytest.raises(ConfigError, match=r"tensor sub\.bad has NaN or infinite"):
            weights.check_finite(path)


def test_large_finite_numbers_whose_sum_overflows_are_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file({"w": torch.full((100,), 3e38), "h": torch.full((100,), 65504.0, dtype=torch.float16)}, path)
    weights.check_finite(path)


def test_opposite_infinities_do_not_cancel(tmp_path: Path) -> None:
    path = tmp_path / "pair.safetensors"
    save_file({"w": torch.tensor([float("inf"), float("-inf"), 1.0])}, path)
    with pytest.raises(ConfigError, match="tensor w"):
        weights.check_finite(path)


def test_digest_is_sha256_of_the_bytes_and_follows_a_change(sound: Path) -> None:
    assert weights.sha256(sound) == hashlib.sha256(sound.read_bytes()).hexdigest()
    sound.write_bytes(sound.read_bytes() + b"x")
    assert weights.sha256(sound) == hashlib.sha256(sound.read_bytes()).hexdigest()


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    path = tmp_path / "claims.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        weights.read_header(path)
