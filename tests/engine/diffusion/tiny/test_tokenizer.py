"""The learnt tokenizer: OpenAI's layout and algorithm (checked against open_clip's own implementation), no unknown
text."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from engine.diffusion.tiny.tokenizer import save_tokenizer, train_tokenizer

LENGTH = 12
PROMPTS = [
    f"photo of {name}, {weight} {slant}"
    for name in ("zero", "one", "sea lion", "école")
    for weight in ("thin", "bold")
    for slant in ("upright", "slanted left")
]
UNSEEN = ["", "A Photo of the Zèbre №5, it's 10%", "日本 ☃", "slantedleft zerone"]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(PROMPTS, LENGTH)


def test_ids_equal_those_of_open_clip_with_the_same_merges(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    merges = (tmp_path / "merges.txt").read_text().strip()
    with gzip.open(tmp_path / "merges.gz", "wt") as stream:
        stream.write(merges)
    oracle = SimpleTokenizer(str(tmp_path / "merges.gz"))
    assert len(tokenizer) == oracle.vocab_size
    for text in [*PROMPTS, *UNSEEN]:
        assert tokenizer(text)["input_ids"] == [oracle.sot_token_id, *oracle.encode(text), oracle.eot_token_id], text


def test_words_of_the_prompts_are_one_token_each(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("photo of sea lion, bold slanted left")["input_ids"]) == 2 + 8


def test_end_of_text_has_the_highest_number_and_pads(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("photo of one", padding="max_length", truncation=True)["input_ids"]
    assert len(ids) == LENGTH == tokenizer.model_max_length
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2


def test_any_text_comes_back(tokenizer: CLIPTokenizer) -> None:
    for text in ("日本 ☃", "slantedleft zerone"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_the_order_of_the_texts_changes_nothing(tokenizer: CLIPTokenizer) -> None:
    shuffled = PROMPTS.copy()
    random.Random(1).shuffle(shuffled)
    assert train_tokenizer(shuffled, LENGTH).get_vocab() == tokenizer.get_vocab()


def test_the_two_old_files_alone_make_the_same_tokenizer(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    whole = CLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    old = CLIPTokenizer.from_pretrained(tmp_path)
    for text in [*PROMPTS, *UNSEEN]:
        assert tokenizer(text)["input_ids"] == whole(text)["input_ids"] == old(text)["input_ids"]
