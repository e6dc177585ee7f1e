"""Prompts as text encoders read them: encoded one at a time, so that an embedding never depends on its neighbours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

CACHE_BYTES = 256 * 2**20
T = TypeVar("T")


class Recent(Generic[T]):
    """Remembers the latest results by prompt, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._results: OrderedDict[str, T] = OrderedDict()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._results)

    def get(self, prompt: str, make: Callable[[str], T]) -> T:
        """What `make` gives for the prompt, made once while it is remembered."""
        if prompt in self._results:
            self._results.move_to_end(prompt)
            return self._results[prompt]
        result = make(prompt)
        self._results[prompt] = result
        if len(self._results) > self._capacity:
            self._results.popitem(last=False)
        return result


class PromptEncoder:
    """The last layer of a CLIP text encoder; what is too long for it is cut (see `reading`)."""

    def __init__(self, tokenizer: Any, text_encoder: Any, *, cache_bytes: int = CACHE_BYTES) -> None:
        config = text_encoder.config
        self.length = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        self.width = int(config.hidden_size)
        self._tokenizer, self._text_encoder = tokenizer, text_encoder
        self._masked = bool(getattr(config, "use_attention_mask", False))
        self._cache: Recent[torch.Tensor] = Recent(
            max(16, cache_bytes // (self.length * self.width * text_encoder.dtype.itemsize))
        )

    def encode(self, prompt: str) -> torch.Tensor:
        """The embedding of one prompt, (length, width), on the text encoder's device and in its dtype."""
        return self._cache.get(prompt, self._encode)

    def _encode(self, prompt: str) -> torch.Tensor:
        ids, mask = tokenize(self._tokenizer, prompt, self.length, self._text_encoder.device)
        with torch.inference_mode():
            embedding: torch.Tensor = self._text_encoder(ids, attention_mask=mask if self._masked else None)[0][0]
        return embedding


def tokenize(tokenizer: Any, prompt: str, length: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (1, length) of one prompt, padded or cut."""
    encoding = tokenizer([prompt], padding="max_length", max_length=length, truncation=True)
    ids = torch.tensor(encoding["input_ids"], device=device)
    return ids, torch.tensor(encoding["attention_mask"], device=device)


def penultimate(
    tokenizer: Any, text_encoder: Any, prompt: str, length: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The last layer but one (length, width) of a CLIP text encoder, and its pooled projection (P,) if it has one."""
    ids, _ = tokenize(tokenizer, prompt, length, text_encoder.device)
    with torch.inference_mode():
        out = text_encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2][0], out[0][0] if out[0].ndim == 2 else None
