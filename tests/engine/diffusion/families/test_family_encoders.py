"""What a network is told equals what the stock pipelines tell it; predictions equal the network's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion import families, prompt_cuts
from engine.diffusion.checkpoint import Checkpoint, load
from engine.diffusion.families.family import from_latents, tell, to_latents, with_tokens
from engine.diffusion.process import Diffusion, Flow
from engine.errors import ConfigError
from tests.support.families import LENGTH, WIDTHS

TEXT = ("xl", "sd3", "sd3_t5")
PROMPTS = ["photo of digit one", "a thin digit, slanted left " * 30, "", "été 数字 ①"]


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_encoded_as_stock_diffusers_does(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], kind: str, prompt: str
) -> None:
    pipeline, theirs = load(checked[kind], "cpu", "float32"), stock(kind)
    prompts = {"prompt": prompt, "prompt_2": None} | ({} if kind == "xl" else {"prompt_3": None})
    with torch.inference_mode():
        states, _, pooled, _ = theirs.encode_prompt(**prompts, do_classifier_free_guidance=False)
    told = families.of(pipeline).encoder(pipeline).encode(prompt, 3)
    assert torch.equal(told["states"], states[0])
    assert torch.equal(told["pooled"], pooled[0])


def test_no_prompt_is_zeros_where_sdxl_says_so(checked: dict[str, Checkpoint], stock: Callable[[str], Any]) -> None:
    """The stock pipeline's rule for a negative prompt that is not given, and for checkpoints that switch it off."""
    pipeline, theirs = load(checked["xl"], "cpu", "float32"), stock("xl")
    for zeros in (True, False):
        for one in (pipeline, theirs):
            one.register_to_config(force_zeros_for_empty_prompt=zeros)
        with torch.inference_mode():
            _, states, _, pooled = theirs.encode_prompt("one")
        told = families.of(pipeline).encoder(pipeline).encode("", None)
        assert torch.equal(told["states"], states[0])
        assert torch.equal(told["pooled"], pooled[0])
        assert bool((told["states"] == 0).all()) is zeros
    assert torch.equal(told["time_ids"], torch.tensor([8.0, 8, 0, 0, 8, 8]))


@pytest.mark.parametrize("kind", TEXT)
def test_a_feature_overwrites_the_channels_of_the_encoder_of_its_width(
    checked: dict[str, Checkpoint], kind: str
) -> None:
    pipeline = load(checked[kind], "cpu", "float32")
    encoder = families.of(pipeline).encoder(pipeline)
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=width).astype(np.float32) for width in WIDTHS)
    told = tell(encoder, ["one"] * 3, [0] * 3, [None, small, large])["states"]
    plain = encoder.encode("one", 0)["states"]
    assert torch.equal(told[0], plain)
    for states, feature, first in ((told[1], small, 0), (told[2], large, WIDTHS[0])):
        changed = (states != plain).nonzero()
        assert set(changed[:, 0].tolist()) == {LENGTH - 1}
        assert set(changed[:, 1].tolist()) == set(range(first, first + len(feature)))
        assert torch.equal(states[LENGTH - 1, first : first + len(feature)], torch.from_numpy(feature))
    assert {width: encoder.place(width) for width in WIDTHS} == checked[kind].places
    batched = with_tokens({"states": plain[None]}, torch.from_numpy(large)[None], encoder.place(WIDTHS[1]))
    assert torch.equal(batched["states"][0], told[2])
    with pytest.raises(ConfigError, match="have 7 numbers, the checkpoint's text tokens 32 or 48"):
        encoder.place(7)


@pytest.mark.parametrize("kind", TEXT)
def test_prompts_that_differ_in_what_is_cut_alone_are_encoded_alike(checked: dict[str, Checkpoint], kind: str) -> None:
    pipeline = load(checked[kind], "cpu", "float32")
    encoder, readers = families.of(pipeline).encoder(pipeline), prompt_cuts.of_folder(checked[kind].path)
    for words in (LENGTH - 3, LENGTH - 2, 300):
        pair = ["one " * words + last for last in ("two", "three")]
        told = [encoder.encode(prompt)["states"] for prompt in pair]
        kept = {prompt[: read.end] for prompt, read in zip(pair, readers.read(pair), strict=True)}
        assert torch.equal(*told) == (len(kept) == 1)


def test_dit_is_told_a_class_or_the_null_class_and_no_features(checked: dict[str, Checkpoint]) -> None:
    pipeline = load(checked["dit"], "cpu", "float32")
    encoder = families.of(pipeline).encoder(pipeline)
    assert encoder.encode("whatever", 7)["labels"].item() == 7
    assert encoder.encode("", None)["labels"].item() == 1000
    with pytest.raises(ConfigError, match="knows 1000 classes, none of them number 1000"):
        encoder.encode("", 1000)
    with pytest.raises(ConfigError, match=r"classes only, no image features; set generate\.visual_token to none"):
        encoder.place(32)


def _forward(kind: str, pipeline: Any, noisy: torch.Tensor, times: torch.Tensor, told: dict[str, Any]) -> torch.Tensor:
    """The network called by hand."""
    if kind == "xl":
        sizes = torch.tensor([[8.0, 8, 0, 0, 8, 8]]).repeat(len(noisy), 1)
        added = {"text_embeds": told["pooled"], "time_ids": sizes}
        return pipeline.unet(noisy, times, told["states"], added_cond_kwargs=added).sample
    if kind == "dit":
        return pipeline.transformer(noisy, times, told["labels"]).sample[:, :4]
    return pipeline.transformer(noisy, told["states"], told["pooled"], times).sample


@pytest.mark.parametrize("kind", [*TEXT, "dit"])
def test_predictions_are_the_networks_own(checked: dict[str, Checkpoint], kind: str) -> None:
    pipeline = load(checked[kind], "cpu", "float32")
    family = families.of(pipeline)
    told = tell(family.encoder(pipeline), ["one", "two"], [1, 2], [None, None])
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, checked[kind].latent_channels, 4, 4, generator=generator)
    times = family.process(pipeline.scheduler.config).times(2, generator)
    denoiser = getattr(pipeline, family.denoiser)
    with torch.no_grad():
        found = family.predict(denoiser, noisy, times, told)
        assert found.shape == noisy.shape
        assert torch.equal(found, _forward(kind, pipeline, noisy, times, told))


def test_processes_are_those_of_the_schedulers(checked: dict[str, Checkpoint]) -> None:
    made = {}
    for kind in ("xl", "sd3", "dit"):
        pipeline = load(checked[kind], "cpu", "float32")
        made[kind] = families.of(pipeline).process(pipeline.scheduler.config)
    assert isinstance(made["xl"], Diffusion)
    assert isinstance(made["dit"], Diffusion)
    assert isinstance(made["sd3"], Flow)
    shifted = made["sd3"].times(4000, torch.Generator().manual_seed(0)).median().item()
    assert shifted == pytest.approx(750, abs=20)  # 3 s / (1 + 2 s) of the median 1/2


def test_training_dit_drops_no_class_at_random(checked: dict[str, Checkpoint]) -> None:
    """Diffusers' label embedding draws from the global generator in training; here only the null class drops a
    class."""
    pipeline = load(checked["dit"], "cpu", "float32")
    network, before = pipeline.transformer.train(), torch.get_rng_state()
    labels = torch.arange(64)
    with torch.no_grad():
        outputs = [network(torch.ones(64, 4, 4, 4), torch.ones(64), labels).sample for _ in range(3)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_shifted_latents_come_back(checked: dict[str, Checkpoint]) -> None:
    vae = load(checked["sd3"], "cpu", "float32").vae
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        latents, mode = to_latents(vae, images), vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(latents, (mode - 0.06) * 1.5)
        torch.testing.assert_close(from_latents(vae, latents), vae.decode(mode).sample, rtol=1e-4, atol=1e-4)
