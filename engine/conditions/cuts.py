"""Prompts that are longer than a generator's tokenizers read: counted and told, and refused where their class is cut
off."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from engine import output
from engine.conditions import prompts
from engine.conditions.table import Captions, Conditions
from engine.diffusion.prompt_cuts import Read, Readers
from engine.errors import ConfigError, DataError
from engine.spec import RunSpec
from engine.storage.store import Store

RESULT = output.PROMPTS
KEY = "conditions.prompt"


class Cuts(BaseModel):
    """How many of the training images' `prompts` are cut, and how many by each tokenizer; `lengths` are in tokens.

    `suffix_only`: of the cut ones those that lose nothing but (part of) the quality suffix; `negative`: tokens that the
    negative prompt loses, by tokenizer; `example`: the first prompt that is cut, `kept` what is read of it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    prompts: int
    cut: int
    suffix_only: int = 0
    by_tokenizer: dict[str, int]
    lengths: dict[str, int]
    negative: dict[str, int] = {}
    example: str = ""
    kept: str = ""

    @property
    def lines(self) -> list[str]:
        """What there is to tell, a sentence each; nothing where nothing is cut."""
        found = []
        if self.cut:
            by = ", ".join(
                f"{count:,} by {name} ({self.lengths[name]} tokens)" for name, count in self.by_tokenizer.items()
            )
            suffix = f"; {self.suffix_only:,} of them lose the quality suffix alone" if self.suffix_only else ""
            found.append(f"{self.cut:,} of {self.prompts:,} prompts are too long and are cut: {by}{suffix}")
        if self.negative:
            by = ", ".join(f"{count:,} tokens by {name}" for name, count in self.negative.items())
            found.append(f"the negative prompt is too long and is cut: {by}")
        return found


def check(readers: Readers, spec: RunSpec, told: Captions | Conditions, *, drawn: bool = True) -> Cuts:
    """Count the prompts of training images that are cut; ConfigError where a class is no longer told by what is read.

    `drawn`: as they are drawn with, with quality suffix and negative prompt, which no training sees.
    """
    template, names = spec.conditions.prompt, told.class_names
    suffix = spec.generate.quality_suffix if drawn else ""
    images = Counter(zip(told.labels.tolist(), told.captions, strict=True))
    pairs = list(images)
    plain = [prompts.fill(template, names[label], caption) for label, caption in pairs]
    found = readers.read([prompt + suffix for prompt in plain])
    cut = [k for k, read in enumerate(found) if read.lost]
    for k in cut:
        label, caption = pairs[k]
        ends = prompts.class_ends(template, names[label], caption)
        if ends and min(ends) > found[k].end:
            raise _unread(names[label], readers, plain[k], found[k])
    if cut:
        _check_told_apart(names, readers, [label for label, _ in pairs], [prompt + suffix for prompt in plain], found)
    by_tokenizer = {name: sum(images[pairs[k]] for k in cut if name in found[k].lost) for name in readers.lengths}
    first = cut[0] if cut else None
    return Cuts(
        prompts=images.total(),
        cut=sum(images[pairs[k]] for k in cut),
        suffix_only=sum(images[pairs[k]] for k in cut if suffix and not readers.lost(plain[k])),
        by_tokenizer={name: count for name, count in by_tokenizer.items() if count},
        lengths=readers.lengths,
        negative=readers.lost(spec.generate.negative_prompt) if drawn else {},
        example="" if first is None else plain[first] + suffix,
        kept="" if first is None else (plain[first] + suffix)[: found[first].end],
    )


def of_classes(names: Sequence[str]) -> Captions:
    """An image of each class without a caption: what is known before there are captions, which put no class nearer to
    the start."""
    return Captions((), np.arange(len(names), dtype=np.int32), ("",) * len(names), tuple(names), {})


def _check_told_apart(
    names: Sequence[str], readers: Readers, labels: Sequence[int], texts: Sequence[str], found: Sequence[Read]
) -> None:
    """Refuse two classes whose prompts differ, and whose prompts as they are read are the same."""
    whole: defaultdict[int, set[str]] = defaultdict(set)
    kept: defaultdict[int, set[str]] = defaultdict(set)
    for label, text, read in zip(labels, texts, found, strict=True):
        whole[label].add(text)
        kept[label].add(text[: read.end].rstrip())
    seen: dict[frozenset[str], int] = {}
    for label, read_texts in kept.items():
        other = seen.setdefault(frozenset(read_texts), label)
        if whole[other] != whole[label]:
            what = (
                f"tells {names[other]!r} and {names[label]!r} apart only behind the {_lengths(readers)} that are read"
            )
            raise ConfigError(KEY, what, "put {class} first, or ask for shorter captions")


def _unread(name: str, readers: Readers, prompt: str, read: Read) -> ConfigError:
    shown = prompt[: read.end].strip()
    shown = shown if len(shown) <= 60 else f"... {shown[-56:]}"
    what = f"puts class {name!r} behind the {_lengths(readers)} that are read (they end at {shown!r})"
    return ConfigError(
        KEY, what, "put {class} first, shorten the prompt or the class name, or ask for shorter captions"
    )


def _lengths(readers: Readers) -> str:
    return f"{max(readers.lengths.values())} tokens"


def tell(cuts: Cuts, name: str, note: Callable[[str], None]) -> None:
    """Say what is cut, a line each, to a reporter's `note`."""
    for line in cuts.lines:
        note(f"{name}: {line}")


def keep(store: Store, cuts: Cuts) -> None:
    """Write it for the report."""
    store.replace(RESULT, json.dumps(cuts.model_dump(mode="json"), indent=1, sort_keys=True).encode())


def kept(store: Store) -> Cuts | None:
    """What `keep` has written; None where there is nothing, as in outputs of before."""
    try:
        return Cuts.model_validate_json(store.read(RESULT))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise DataError(f"{store.url}/{RESULT}", "is not what mimeo writes", "remove it; it is made again") from None
