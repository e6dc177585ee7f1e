"""Text and visual tokens: equal to the stock encoder, the last token overwritten and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.families.family import tell
from engine.diffusion.families.sd import SdEncoder
from engine.errors import ConfigError

PROMPTS = ["", "photo of digit one", "a thin digit, slanted left " * 9, "été 数字 ①"]


@pytest.fixture(scope="module", params=["digits", "sd15", "sd21"])
def stock(request: pytest.FixtureRequest, folders: dict[str, Path]) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folders[request.param], safety_checker=None)


@pytest.fixture
def encoder(stock: StableDiffusionPipeline) -> PromptEncoder:
    return PromptEncoder(stock.tokenizer, stock.text_encoder)


def embed(encoder: PromptEncoder, prompts: list[str], tokens: list[np.ndarray | None]) -> torch.Tensor:
    return tell(SdEncoder(encoder), prompts, [None] * len(prompts), tokens)["states"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_encoded_as_stock_diffusers_does(
    stock: StableDiffusionPipeline, encoder: PromptEncoder, prompt: str
) -> None:
    with torch.inference_mode():
        expected, _ = stock.encode_prompt(prompt, "cpu", 1, False)
    assert torch.equal(encoder.encode(prompt), expected[0])


def test_an_attention_mask_is_used_where_the_text_encoder_asks_for_one(folders: dict[str, Path]) -> None:
    stock = StableDiffusionPipeline.from_pretrained(folders["sd15"], safety_checker=None)
    plain = PromptEncoder(stock.tokenizer, stock.text_encoder).encode("one")
    stock.text_encoder.config.use_attention_mask = True
    with torch.inference_mode():
        expected, _ = stock.encode_prompt("one", "cpu", 1, False)
    masked = PromptEncoder(stock.tokenizer, stock.text_encoder).encode("one")
    assert torch.equal(masked, expected[0])
    assert not torch.equal(masked, plain)


def test_the_cache_changes_no_bit_whatever_was_encoded_between(encoder: PromptEncoder) -> None:
    first = [encoder.encode(prompt).clone() for prompt in PROMPTS]
    small = PromptEncoder(encoder._tokenizer, encoder._text_encoder, cache_bytes=1)
    for prompt in [*(f"one {n}" for n in range(20)), *reversed(PROMPTS)]:
        small.encode(prompt)
    assert len(small._cache) == 16
    for prompt, expected in zip(PROMPTS, first, strict=True):
        assert torch.equal(small.encode(prompt), expected)
        assert torch.equal(encoder.encode(prompt), expected)


def test_only_the_last_token_is_overwritten_and_only_where_there_is_one(encoder: PromptEncoder) -> None:
    token = np.random.default_rng(0).normal(size=encoder.width).astype(np.float32) * 9
    embeds = embed(encoder, ["one", "one", "two"], [token, None, -token])
    one, two = encoder.encode("one"), encoder.encode("two")
    assert embeds.shape == (3, encoder.length, encoder.width)
    assert torch.equal(embeds[:, :-1], torch.stack([one, one, two])[:, :-1])
    assert torch.equal(embeds[0, -1], torch.from_numpy(token))
    assert torch.equal(embeds[1], one)
    assert torch.equal(embeds[2, -1], torch.from_numpy(-token))
    assert torch.equal(encoder.encode("one"), one)


def test_a_token_of_another_width_and_one_that_is_not_finite_are_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigError, match=f"have 7 numbers, the checkpoint's text tokens {encoder.width}"):
        embed(encoder, ["one"], [np.ones(7, np.float32)])
    with pytest.raises(ValueError, match="not finite"):
        embed(encoder, ["one"], [np.full(encoder.width, np.nan, np.float32)])
