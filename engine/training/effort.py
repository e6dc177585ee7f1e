"""How much arithmetic the closed-set training and its samples are, counted from the recipe alone, and what that takes
on this machine.

Counts are floating-point operations (a multiplication and an addition are two) of convolutions, matrix products and
attention; the rest is little. No network is built, and torch is not imported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from engine.spec import RunSpec
from engine.spec.training import ClipSpec, DitSpec, PixelSpec, UNetSpec, VaeSpec

BACKWARD = 3  # times the forward pass, for both
# Share of a matrix product's speed that these networks reach on one core in float32: 0.34 to 0.56 at 8 pixels, 0.66 to
# 0.93 at 32.
SHARE = 0.5
READINGS = (
    8,
    4,
)  # of the held-out error: along the training, of which each takes the training images too, and of lengths
PAIRS = 2048  # of image and noise a reading, at most


def clip(spec: ClipSpec, image_size: int, text_length: int) -> float:
    """Both towers' forward pass for one image and one text."""
    tokens = (image_size // spec.patch) ** 2 + 1
    embedding = 2 * (tokens - 1) * 3 * spec.patch**2 * spec.hidden
    layers = sum(_attention(count, spec.hidden) + 16 * count * spec.hidden**2 for count in (tokens, text_length))
    return embedding + spec.layers * layers


def vae(spec: VaeSpec, image_size: int) -> float:
    """Encoder and decoder for one image."""
    return _encoder(spec, image_size) + decoder(spec, image_size)


def _encoder(spec: VaeSpec, image_size: int) -> float:
    blocks, side, width = spec.blocks, image_size, spec.blocks[0]
    total = _conv(side, 3, width)
    for number, block in enumerate(blocks):
        for _ in range(spec.layers):
            total += _resnet(side, width, block)
            width = block
        if number < len(blocks) - 1:
            side //= 2
            total += _conv(side, block, block)
    codes = 2 * spec.latent_channels
    return total + 2 * _resnet(side, width, width) + _conv(side, width, codes) + 2 * side**2 * codes**2


def decoder(spec: VaeSpec, image_size: int) -> float:
    """The decoder for one image."""
    blocks = spec.blocks[::-1]
    side, width, codes = image_size // 2 ** (len(blocks) - 1), blocks[0], spec.latent_channels
    total = 2 * side**2 * codes**2 + _conv(side, codes, width) + 2 * _resnet(side, width, width)
    for number, block in enumerate(blocks):
        for _ in range(spec.layers + 1):
            total += _resnet(side, width, block)
            width = block
        if number < len(blocks) - 1:
            side *= 2
            total += _conv(side, block, block)
    return total + _conv(side, width, 3)


def unet(spec: UNetSpec, channels: int, side: int, text_width: int, text_length: int) -> float:
    """The latent U-Net for one latent of `side`: cross-attention in all blocks but the one at full resolution."""
    sides = [side // 2**k for k in range(len(spec.blocks))]

    def transformer(tokens: int, width: int) -> float:
        crossed = 4 * tokens * width**2 + 4 * text_length * text_width * width + 4 * tokens * text_length * width
        around = 4 * tokens * width**2  # the projections before and after
        return around + _attention(tokens, width) + crossed + 24 * tokens * width**2

    extra = [0.0, *(transformer(s * s, block) for s, block in zip(sides[1:], spec.blocks[1:], strict=True))]
    return _unet(spec.blocks, spec.layers, channels, side, extra, transformer(sides[-1] ** 2, spec.blocks[-1]))


def pixel(spec: PixelSpec, side: int) -> float:
    """The U-Net in pixels for one image."""
    sides = [side // 2**k for k in range(len(spec.blocks))]
    extra = [
        _attention(s * s, block) if s in spec.attention else 0.0 for s, block in zip(sides, spec.blocks, strict=True)
    ]
    middle = _attention(sides[-1] ** 2, spec.blocks[-1]) if spec.attention else 0.0
    return _unet(spec.blocks, spec.layers, 3, side, extra, middle)


def dit(spec: DitSpec, channels: int, side: int) -> float:
    """The transformer for one latent of `side`."""
    tokens, width = (side // spec.patch) ** 2, spec.hidden
    patches = 4 * tokens * channels * spec.patch**2 * width
    return patches + spec.layers * (_attention(tokens, width) + 16 * tokens * width**2 + 12 * width**2)


def _unet(blocks: Sequence[int], layers: int, channels: int, side: int, extra: Sequence[float], middle: float) -> float:
    """Down, middle and up; `extra`: what each resolution has beside a residual layer."""
    total, width, skips = _conv(side, channels, blocks[0]), blocks[0], [blocks[0]]
    for number, block in enumerate(blocks):
        for _ in range(layers):
            total += _resnet(side, width, block) + extra[number]
            width = block
            skips.append(width)
        if number < len(blocks) - 1:
            side //= 2
            total += _conv(side, width, width)
            skips.append(width)
    total += 2 * _resnet(side, width, width) + middle
    for number, block in reversed(list(enumerate(blocks))):
        for _ in range(layers + 1):
            total += _resnet(side, width + skips.pop(), block) + extra[number]
            width = block
        if number:
            side *= 2
            total += _conv(side, width, width)
    return total + _conv(side, width, channels)


def _conv(side: int, taken: int, given: int) -> float:
    """3 x 3, `side` being that of the result."""
    return 18.0 * side**2 * taken * given


def _resnet(side: int, taken: int, given: int) -> float:
    shortcut = 2.0 * side**2 * taken * given if taken != given else 0.0
    return _conv(side, taken, given) + _conv(side, given, given) + shortcut


def _attention(tokens: int, width: int) -> float:
    return 8.0 * tokens * width**2 + 4.0 * tokens**2 * width


def forward(spec: RunSpec) -> dict[str, float]:
    """Of one image, for each stage of the recipe's training in turn."""
    own, size = spec.pretrain, spec.images.size
    found = {"clip": clip(own.clip, size, own.text_length)}
    if own.kind == "pixel":
        return found | {"pixel": pixel(own.pixel, size)}
    side, channels = size // 2 ** (len(own.vae.blocks) - 1), own.vae.latent_channels
    found["vae"] = vae(own.vae, size)
    if own.kind == "dit":
        return found | {"dit": dit(own.dit, channels, side)}
    return found | {"unet": unet(own.unet, channels, side, own.clip.hidden, own.text_length)}


def training(spec: RunSpec, images: int) -> dict[str, float]:
    """Of the whole training of each stage on so many training images, with the readings of held-out ones."""
    own, each = spec.pretrain, forward(spec)
    found = {}
    for name, one in each.items():
        stage: Any = own.trained if name == own.kind else {"clip": own.clip, "vae": own.vae}[name]
        found[name] = BACKWARD * one * stage.steps * stage.batch
    if own.held_out:
        along, lengths = READINGS
        seen, unseen = (min(PAIRS, max(512, count)) for count in (images, own.holds_out(images)))
        found[own.kind] += each[own.kind] * (along * (seen + unseen) + lengths * unseen)
    return found


def sample(spec: RunSpec) -> float:
    """Of drawing one image by the generator that the recipe trains."""
    generate, own, each = spec.generate, spec.pretrain, forward(spec)
    steps = max(1, int(generate.num_inference_steps * generate.strength))
    if "heun" in generate.scheduler:
        steps = 2 * steps - 1
    guided = 2 if generate.guidance_scale > 1 else 1
    return steps * guided * each[own.kind] + (0.0 if own.kind == "pixel" else decoder(own.vae, spec.images.size))


@cache
def per_second() -> float:
    """Operations in a second of processor time that these networks are likely to get here, from a matrix product of a
    third of a second."""
    import numpy as np

    one = np.ones((384, 384), np.float32)
    one @ one
    begun, count = time.process_time(), 0
    while (spent := time.process_time() - begun) < 0.3:
        for _ in range(10):
            one @ one
        count += 10
    return SHARE * count * 2 * 384**3 / spent
