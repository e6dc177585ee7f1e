"""The closed-set generator in pixels: stock diffusers classes, sized by the recipe, with freshly drawn weights."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

from engine.spec.training import PixelSpec

RGB = 3
GROUPS, IN_GROUP = 32, 4  # of a group norm: at most so many, of at least so many channels


def rules(spec: PixelSpec, side: int) -> list[tuple[bool, str, str]]:
    """What must hold, with the key and the words for where it does not."""
    sides = [side // 2**k for k in range(len(spec.blocks))]
    strange = [wanted for wanted in spec.attention if wanted not in sides]
    attended = [block for block, own in zip(spec.blocks, sides, strict=True) if own in spec.attention]
    halved = 2 ** (len(spec.blocks) - 1)
    return [
        (side % halved == 0, "pixel.blocks", f"are too many to halve {side} px that often"),
        (gcd(GROUPS, *spec.blocks) >= 8, "pixel.blocks", "must be multiples of 8"),
        (not strange, "pixel.attention", f"{strange[:1]} is no side of the blocks, which are {sides}"),
        (
            all(block % spec.head_dim == 0 for block in attended),
            "pixel.head_dim",
            f"{spec.head_dim} does not divide the widths {attended} of the blocks with attention",
        ),
    ]


def build_unet(spec: PixelSpec, image_size: int, classes: int) -> UNet2DModel:
    """A UNet2DModel that is told a class, the last being none; its output layer begins at zero, so that it begins as no
    change.

    Noise level and class scale and shift what the group norms give. Added before them, as is diffusers' default, they
    would be taken out again: a norm removes the mean of each group, and with groups of one channel all of what was
    added.
    """
    sides = [image_size // 2**k for k in range(len(spec.blocks))]
    seen = [side in spec.attention for side in sides]
    unet: Any = UNet2DModel(
        sample_size=image_size,
        in_channels=RGB,
        out_channels=RGB,
        block_out_channels=spec.blocks,
        layers_per_block=spec.layers,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in seen),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(seen)),
        attention_head_dim=spec.head_dim,
        add_attention=bool(spec.attention),
        dropout=spec.dropout,
        num_class_embeds=classes + 1,
        norm_num_groups=gcd(GROUPS, *(block // IN_GROUP for block in spec.blocks)),
        resnet_time_scale_shift="scale_shift",
        freq_shift=1,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet  # type: ignore[no-any-return]


def build_projection(unet: Any, width: int) -> ReduxImageEncoder:
    """From image features of `width` numbers to what is added to the class's vector; its output begins at zero."""
    projection: Any = ReduxImageEncoder(redux_dim=width, txt_in_features=unet.time_embedding.linear_2.out_features)
    torch.nn.init.zeros_(projection.redux_down.weight)
    torch.nn.init.zeros_(projection.redux_down.bias)
    return projection  # type: ignore[no-any-return]


def build_scheduler(spec: PixelSpec) -> EDMEulerScheduler | FlowMatchEulerDiscreteScheduler:
    """EDM's noise levels as published: 80 to 0.002, rho 7, data of standard deviation 0.5; flow matching's times
    without a shift."""
    return FlowMatchEulerDiscreteScheduler() if spec.objective == "flow" else EDMEulerScheduler()
