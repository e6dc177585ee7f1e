"""How much of a prompt a generator's tokenizers read, and what they cut off; found without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from engine.diffusion import layout
from engine.diffusion.families import checks

CHUNK = 10_000  # prompts tokenized at once
REMEMBERED = 1 << 16


@dataclass(frozen=True)
class Read:
    """What is read of one prompt: its first `end` letters, by the tokenizer that reads the most; tokens `lost`, by
    tokenizer."""

    end: int
    lost: dict[str, int]


class Readers:
    """A generator's tokenizers and the `lengths` that they cut at, start and end of the text included; none for a DiT.

    `load` gives a tokenizer by its name, where a prompt may be too long for one.
    """

    def __init__(self, lengths: Mapping[str, int], load: Callable[[str], Any]) -> None:
        self.lengths = dict(lengths)
        self._load = load
        self.lost = lru_cache(REMEMBERED)(lambda prompt: self.read([prompt])[0].lost)

    @cached_property
    def _backends(self) -> Mapping[str, Any]:
        found = {name: self._load(name).backend_tokenizer for name in self.lengths}
        for backend in found.values():
            backend.no_truncation()
            backend.no_padding()
        return found

    def read(self, prompts: Sequence[str]) -> list[Read]:
        """What is read of each prompt."""
        found = [Read(len(prompt), {}) for prompt in prompts]
        least = min(self.lengths.values(), default=0)
        # a token is a letter at least, and texts begin and end with one each at most
        long = [k for k, prompt in enumerate(prompts) if not (prompt.isascii() and len(prompt) + 2 <= least)]
        for first in range(0, len(long) if self.lengths else 0, CHUNK):
            rows = long[first : first + CHUNK]
            parts = [self._read(name, [prompts[k] for k in rows]) for name in self.lengths]
            for k, own in zip(rows, zip(*parts, strict=True), strict=True):
                lost = {name: cut for name, (_, cut) in zip(self.lengths, own, strict=True) if cut}
                whole = len(lost) < len(own)
                found[k] = Read(len(prompts[k]) if whole else max(end for end, _ in own), lost)
        return found

    def _read(self, name: str, prompts: list[str]) -> list[tuple[int, int]]:
        """Letters read and tokens lost of each prompt."""
        out = []
        for encoding in self._backends[name].encode_batch(prompts):
            ends = [
                end
                for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
                if not special
            ]
            room = self.lengths[name] - (len(encoding.ids) - len(ends))
            out.append((ends[room - 1] if 0 < room < len(ends) else 0, max(0, len(ends) - room)))
        return out


def of_folder(folder: Path) -> Readers:
    """Those of a checked diffusers directory; transformers is imported at the first long prompt, torch never."""
    index = layout.read_index(folder)
    parts = {name: index.family.parts[name] for name in index.named("tokenizer")}
    positions = min((_length(folder, name) for name, part in parts.items() if part.length is None), default=0)

    def load(name: str) -> Any:
        import transformers

        return getattr(transformers, parts[name].classes[0]).from_pretrained(folder / name, local_files_only=True)

    return Readers({name: part.length or positions for name, part in parts.items()}, load)


def _length(folder: Path, tokenizer: str) -> int:
    encoder = layout.read_json(layout.config_file(folder, tokenizer.replace("tokenizer", "text_encoder")))
    return checks.text_length(encoder, layout.read_json(layout.config_file(folder, tokenizer)))
