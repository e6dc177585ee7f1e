"""A CLIPTokenizer whose vocabulary is learnt from the prompts of one data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = 8192  # more than any closed set's prompts need; a rare word is then a few tokens long


def train_tokenizer(texts: Iterable[str], text_length: int) -> CLIPTokenizer:
    """Learn byte-level BPE merges from `texts`; prompts are cut and padded to `text_length` tokens.

    The vocabulary is laid out as OpenAI's: 256 bytes, the same at a word's end, the merges in the order in which they
    were learnt, start and end of text. So no text is unknown, and the end-of-text token (which also pads) has the
    highest number. The result depends on the set of texts and their counts, not on their order.
    """
    learnt = CLIPTokenizer().train_new_from_iterator(
        [sorted(texts)], vocab_size=len(bytes_to_unicode()) + 2 + MERGES, show_progress=False
    )
    symbols = [*bytes_to_unicode().values()]
    merges = _merges(learnt)
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    pieces += [str(learnt.bos_token), str(learnt.eos_token)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=text_length)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, the files that every version of CLIPTokenizer reads, beside the fast
    tokenizer.json."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def _merges(tokenizer: CLIPTokenizer) -> list[Any]:
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
