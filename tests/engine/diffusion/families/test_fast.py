"""Switches that change how the arithmetic is carried out: each is really on, and pictures differ by rounding alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion import fast, lora
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import ClusterError, ConfigError
from engine.spec.recipe import FastSpec, GenerateSpec, ModelSpec
from tests.support.checkpoints import write_checkpoint
from tests.support.tiers import slow

KINDS = ("digits", "sd15", "xl", "sd3", "dit")
Draw = Callable[..., np.ndarray]


def spec(kind: str, **changes: Any) -> GenerateSpec:
    scheduler = "flow_euler" if kind.startswith("sd3") else "dpmsolver++"
    return GenerateSpec(**{"num_inference_steps": 3, "scheduler": scheduler, "visual_token": "none"} | changes)


def ask(count: int) -> list[Request]:
    return [Request(f"photo of digit {n % 3}", 50 + n, label=n) for n in range(count)]


def pixels(drawn: list[Drawn]) -> np.ndarray:
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


@pytest.fixture
def fresh(all_checked: dict[str, Checkpoint]) -> Callable[..., Sampler]:
    """`fresh(kind, **switches)`: a sampler over models of its own, since switches change them."""

    def make(kind: str, *, dtype: str = "float32", generate: dict[str, Any] | None = None, **switches: Any) -> Sampler:
        how = FastSpec(**switches) if switches else None
        return Sampler(load(all_checked[kind], "cpu", dtype), spec(kind, **generate or {}), how)

    return make


@pytest.fixture(scope="module")
def expected(all_checked: dict[str, Checkpoint]) -> Callable[[str], np.ndarray]:
    """The pictures of a family without any switch."""
    made: dict[str, np.ndarray] = {}

    def get(kind: str) -> np.ndarray:
        if kind not in made:
            made[kind] = pixels(Sampler(load(all_checked[kind], "cpu", "float32"), spec(kind)).draw(ask(5)))
        return made[kind]

    return get


def denoiser(sampler: Sampler) -> Any:
    return getattr(sampler.pipeline, "unet", None) or sampler.pipeline.transformer


@pytest.mark.parametrize("kind", KINDS)
def test_all_switches_together_change_rounding_only(
    fresh: Callable[..., Sampler], expected: Callable[[str], np.ndarray], kind: str
) -> None:
    switches = {"channels_last": "on", "fuse_qkv": kind != "dit", "attention": "math", "decode_batch": 2}
    assert np.abs(pixels(fresh(kind, **switches).draw(ask(5))) - expected(kind)).max() <= 2


def test_weights_lie_channels_last(fresh: Callable[..., Sampler]) -> None:
    for asked, lies in (("on", True), ("auto", False), ("off", False)):
        sampler = fresh("digits", channels_last=asked)
        for convolution in (sampler.pipeline.unet.conv_in, sampler.pipeline.vae.decoder.conv_in):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == lies


@pytest.mark.parametrize("kind", ["digits", "sd3"])
def test_projections_are_fused(fresh: Callable[..., Sampler], expected: Callable[[str], np.ndarray], kind: str) -> None:
    sampler, calls = fresh(kind, fuse_qkv=True), []
    for name, module in denoiser(sampler).named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_qkv")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name.rpartition(".")[2]))
    assert np.abs(pixels(sampler.draw(ask(5))) - expected(kind)).max() <= 2
    assert "to_qkv" in calls
    assert "to_k" not in calls


def test_what_cannot_be_fused_is_refused(
    fresh: Callable[..., Sampler], inspected: dict[str, Checkpoint], loras: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"fuse_qkv: diffusers cannot fuse .* of DiTTransformer2DModel"):
        fresh("dit", fuse_qkv=True)
    for dtype in ("float32", "bfloat16"):
        pipeline = load(inspected["digits"], "cpu", dtype)
        lora.attach(pipeline, loras["digits"], 1.0)
        if dtype == "float32":  # added to the weights
            Sampler(pipeline, spec("digits"), FastSpec(fuse_qkv=True))
        else:
            with pytest.raises(ConfigError, match="a LoRA in bfloat16 stays beside the weights"):
                Sampler(pipeline, spec("digits"), FastSpec(fuse_qkv=True))


@pytest.mark.parametrize("kind", ["auto", "flash", "cudnn", "efficient", "math"])
def test_the_attention_kernel_is_the_one_that_was_asked_for(
    fresh: Callable[..., Sampler], expected: Callable[[str], np.ndarray], kind: str
) -> None:
    sampler, seen = fresh("digits", attention=kind), set()

    def look(*_: Any) -> None:
        enabled = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
        seen.add((*enabled, torch._C._get_sdp_priority_order()[0]))

    sampler.pipeline.unet.mid_block.register_forward_hook(look)
    before = torch._C._get_sdp_priority_order()
    assert np.abs(pixels(sampler.draw(ask(5))) - expected("digits")).max() <= 2
    assert len(seen) == 1
    flash, efficient, first = seen.pop()
    assert (flash, efficient) == ((False, False) if kind == "math" else (True, True))
    if kind not in ("auto", "math"):
        assert first == int(fast._KERNELS[kind].value)
    assert torch._C._get_sdp_priority_order() == before


def test_latents_are_decoded_in_parts(fresh: Callable[..., Sampler], expected: Callable[[str], np.ndarray]) -> None:
    sampler, seen = fresh("digits", decode_batch=2), []
    sampler.pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    assert np.abs(pixels(sampler.draw(ask(5))) - expected("digits")).max() <= 2
    assert seen == [2, 2, 1]


@pytest.mark.parametrize(
    ("asked", "device", "side", "expected"),
    [
        (None, "cpu", 255, None),
        (None, "cpu", 256, 1),
        (None, "cuda", 512, None),
        (3, "cpu", 512, 3),
        (3, "cuda", 64, 3),
    ],
)
def test_how_many_images_the_vae_takes(asked: int | None, device: str, side: int, expected: int | None) -> None:
    assert fast.vae_batch(FastSpec(decode_batch=asked), device, side) == expected


def test_a_cpu_takes_large_images_through_the_vae_one_at_a_time(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "large", "sd15", vae=(4, 4, 4, 4, 8, 8), groups=4, sample=8)
    checked = inspect(ModelSpec(checkpoint=str(folder)), 256)
    real, found = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8), []
    for how, parts in ((FastSpec(), [1, 1, 1]), (FastSpec(decode_batch=3), [3])):
        sampler, seen = Sampler(load(checked, "cpu", "float32"), spec("sd15", strength=0.9, pairing="own"), how), []
        for module in (sampler.pipeline.vae.encoder, sampler.pipeline.vae.decoder):
            module.register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(len(args[0]) if args[0].is_contiguous() else -1)
            )
        latents = sampler.encode_latents(real)
        drawn = sampler.draw([Request("photo", seed, init_latents=one) for seed, one in enumerate(latents)])
        assert seen == parts * 2
        found.append((latents, pixels(drawn)))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    assert np.abs(found[0][1] - found[1][1]).max() <= 2


def test_a_stream_gives_what_draw_gives_one_batch_late_where_copies_run_beside(fresh: Callable[..., Sampler]) -> None:
    sampler, begun = fresh("digits"), []
    batches = [ask(5)[:2], ask(5)[2:4], ask(5)[4:]]
    expected = [pixels(sampler.draw(batch)) for batch in batches]

    def asked() -> Iterator[list[Request]]:
        for number, batch in enumerate(batches):
            begun.append(number)
            yield batch

    for ahead, order in ((False, [1, 2, 3]), (True, [2, 3, 3])):
        sampler._ahead = ahead  # as on CUDA
        begun.clear()
        found = []
        for number, drawn in enumerate(sampler.stream(asked())):
            assert np.array_equal(pixels(drawn), expected[number])
            found.append(len(begun))
        assert found == order
        assert list(sampler.stream([])) == []


def hook_batches(sampler: Sampler, seen: list[int], limit: int = 10**6) -> None:
    def look(module: Any, args: Any) -> None:
        seen.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    sampler.pipeline.unet.register_forward_pre_hook(look)


def test_short_batches_are_filled_up_for_a_compiled_denoiser(
    fresh: Callable[..., Sampler], expected: Callable[[str], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    generate = {"guidance_scale": 1.0, "num_inference_steps": 1}
    plain = pixels(fresh("digits", generate=generate).draw(ask(5)))
    sampler, seen = fresh("digits", generate=generate, compile="default"), []
    sampler.expect(4)
    hook_batches(sampler, seen)
    found = np.concatenate([pixels(sampler.draw(part)) for part in (ask(5)[:4], ask(5)[4:])])
    assert np.abs(found - plain).max() <= 2
    assert seen == [4, 4]
    hook_batches(sampler, [], limit=3)
    seen.clear()
    assert np.abs(pixels(sampler.draw(ask(5)[:3])) - plain[:3]).max() <= 2
    assert seen == [4, 2, 2]


def test_what_fits_is_tried_with_a_whole_batch_and_few_steps(fresh: Callable[..., Sampler]) -> None:
    for generate, batch, steps in (
        ({"guidance_scale": 2.0, "guidance_interval": [0.5, 1.0], "num_inference_steps": 8}, 2, 1),
        ({"guidance_scale": 1.0, "strength": 0.3, "pairing": "own", "num_inference_steps": 8}, 1, 1),
    ):
        sampler, seen = fresh("digits", generate=generate), []
        hook_batches(sampler, seen, limit=12)
        assert [sampler.fits(size) for size in (1, 4, 16)] == [True, True, False]
        assert seen == [batch] * steps + [4 * batch] * steps + [16 * batch]
    sampler.pipeline.unet.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.fits(1)


def test_a_compiler_that_fails_is_one_line(fresh: Callable[..., Sampler]) -> None:
    sampler = fresh("digits")

    def fail(*_: Any) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("no C++ compiler\nand so on")

    sampler.pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(ClusterError, match=r"resources.fast.compile: .*no C\+\+ compiler; set it to off"):
        sampler.draw(ask(3))


@slow
@pytest.mark.parametrize(("kind", "cache_interval"), [("dit", 1), ("digits", 1), ("digits", 2)])
def test_a_compiled_denoiser_draws_the_same(
    fresh: Callable[..., Sampler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    cache_interval: int,
) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    generate = {"cache_interval": cache_interval}
    plain = pixels(fresh(kind, generate=generate).draw(ask(5)))
    sampler = fresh(kind, generate=generate, compile="default")
    sampler.expect(4)
    torch._dynamo.reset()
    found = np.concatenate([pixels(sampler.draw(part)) for part in (ask(5)[:4], ask(5)[4:])])
    assert np.abs(found - plain).max() <= 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert any((tmp_path / fast.COMPILED).rglob("*"))
