"""What the U-Net is told: the encoded prompt, with its last token overwritten by the CLIP feature of an image.

The released Real-Fake code (arXiv 2310.10402) puts the projected, not normalised, CLIP image feature in the place of the
last text token; stock diffusers takes the result as `prompt_embeds`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.errors import ConfigError

CACHE_BYTES = 256 * 2**20


class PromptEncoder:
    """Encodes prompts one at a time, so that an embedding never depends on its neighbours, and remembers the latest.

    `cut_prompts` counts the distinct encodings whose text was longer than the tokenizer's length and was cut.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, cache_bytes: int = CACHE_BYTES) -> None:
        config = text_encoder.config
        self.length = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        self.width = int(config.hidden_size)
        self.cut_prompts = 0
        self._tokenizer, self._text_encoder = tokenizer, text_encoder
        self._masked = bool(getattr(config, "use_attention_mask", False))
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._capacity = max(16, cache_bytes // (self.length * self.width * text_encoder.dtype.itemsize))

    def encode(self, prompt: str) -> torch.Tensor:
        """The embedding of one prompt, (length, width), on the text encoder's device and in its dtype."""
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        ids, mask, cut = self._tokenize(prompt)
        with torch.inference_mode():
            embedding = self._text_encoder(ids, attention_mask=mask)[0][0]
        self.cut_prompts += cut
        self._cache[prompt] = embedding
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return embedding

    def embed(self, prompts: Sequence[str], tokens: Sequence[np.ndarray | None]) -> torch.Tensor:
        """`prompt_embeds` (N, length, width): row i is prompt i, its last token overwritten by `tokens[i]` (width,).

        A token of None leaves the text as it is. ConfigError where a token's width is not the text encoder's, ValueError
        where it is not finite.
        """
        embeds = torch.stack([self.encode(prompt) for prompt in prompts])
        for row, token in enumerate(tokens):
            if token is not None:
                embeds[row, -1] = self._visual(token).to(embeds)
        return embeds

    def _visual(self, token: np.ndarray) -> torch.Tensor:
        check_feature_dim(token.shape[-1], self.width)
        if not np.isfinite(token).all():
            raise ValueError("the visual token is not finite")
        return torch.from_numpy(np.ascontiguousarray(token, dtype=np.float32))

    def _tokenize(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
        encoding = self._tokenizer(
            prompt,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_overflowing_tokens=True,
        )
        device = self._text_encoder.device
        ids = torch.tensor(encoding["input_ids"][:1], device=device)
        mask = torch.tensor(encoding["attention_mask"][:1], device=device) if self._masked else None
        return ids, mask, len(encoding["input_ids"]) > 1


def check_feature_dim(feature_dim: int, cross_attention_dim: int) -> None:
    """Refuse image features that do not fit in the place of a text token (ConfigError)."""
    if feature_dim != cross_attention_dim:
        raise ConfigError(
            "conditions.features",
            f"the CLIP image features have {feature_dim} numbers, the checkpoint's text tokens {cross_attention_dim}",
            "use the CLIP that the checkpoint was trained with, or set generate.visual_token to none",
        )
