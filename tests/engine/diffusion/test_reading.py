"""What tokenizers read of a prompt, against transformers' own truncation, for every family and for odd texts."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import CLIPTokenizer

from engine.diffusion import prompt_cuts
from engine.diffusion.conditioning import tokenize
from engine.diffusion.prompt_cuts import Read, Readers
from tests.support.checkpoints import write_checkpoint
from tests.support.families import LENGTH, write_family

LENGTHS = {
    "digits": {"tokenizer": 16},
    "sd15": {"tokenizer": 77},
    "xl": {"tokenizer": LENGTH, "tokenizer_2": LENGTH},
    "sd3": {"tokenizer": LENGTH, "tokenizer_2": LENGTH},
    "sd3_t5": {"tokenizer": LENGTH, "tokenizer_2": LENGTH, "tokenizer_3": 256},
    "dit": {},
}
WORDS = [
    "photo",
    "of",
    "digit",
    "zero",
    "a",
    "thin",
    "x-ray",
    "Ünïcode",
    "naïve",
    "猫",
    "tench's",
    "12,345",
    ",",
    ".",
    "!",
    "<|endoftext|>",
    "—",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("read")
    return {
        kind: write_checkpoint(root / kind, kind) if kind in ("digits", "sd15") else write_family(root / kind, kind)
        for kind in LENGTHS
    }


@pytest.mark.parametrize("kind", LENGTHS)
def test_as_much_is_lost_as_transformers_cuts(written: dict[str, Path], kind: str) -> None:
    readers = prompt_cuts.of_folder(written[kind])
    assert readers.lengths == LENGTHS[kind]
    rng = random.Random(0)
    prompts = ["", *(" ".join(rng.choices(WORDS, k=rng.randint(0, 160))) for _ in range(60))]
    found = readers.read(prompts)
    for name, length in readers.lengths.items():
        loader = transformers.T5TokenizerFast if name == "tokenizer_3" else CLIPTokenizer
        tokenizer = loader.from_pretrained(written[kind] / name)
        for prompt, read in zip(prompts, found, strict=True):
            whole = tokenizer(prompt, verbose=False)["input_ids"]
            assert read.lost.get(name, 0) == max(0, len(whole) - length)
            ids, mask = tokenize(tokenizer, prompt, length, "cpu")
            assert ids.shape == mask.shape == (1, length)
    assert [readers.lost(prompt) for prompt in prompts] == [read.lost for read in found]
    if len(readers.lengths) == 1:
        (length,), tokenizer = readers.lengths.values(), CLIPTokenizer.from_pretrained(written[kind] / "tokenizer")
        for prompt, read in zip(prompts, found, strict=True):
            cut = tokenizer(prompt, truncation=True, max_length=length, return_offsets_mapping=True)
            assert not read.lost or read.end == max(end for _, end in cut["offset_mapping"])
            assert read.lost or read.end == len(prompt)


def test_the_longest_reader_says_what_is_read(written: dict[str, Path]) -> None:
    prompt = "photo of digit zero " * 10
    with_t5, without = (prompt_cuts.of_folder(written[kind]).read([prompt])[0] for kind in ("sd3_t5", "sd3"))
    assert with_t5.end == len(prompt)
    assert set(with_t5.lost) == {"tokenizer", "tokenizer_2"}
    assert without.end < len(prompt)
    assert prompt_cuts.of_folder(written["dit"]).read([prompt]) == [Read(len(prompt), {})]


def test_short_prompts_are_never_tokenized() -> None:
    def load(name: str) -> None:
        raise LookupError(name)

    readers = Readers({"tokenizer": 16}, load)
    assert readers.read(["", "a" * 14]) == [Read(0, {}), Read(14, {})]
    for longer in ("a" * 15, "\u00fc"):
        with pytest.raises(LookupError):
            readers.read([longer])


def test_it_needs_no_torch(written: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.diffusion import prompt_cuts\n"
        "print(prompt_cuts.of_folder(Path(sys.argv[1])).lost('zero ' * 100))\n"
        "print([m for m in ('torch', 'diffusers', 'ray') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(written["digits"])]
    said = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert said.stdout.splitlines() == ["{'tokenizer': 86}", "[]"]
