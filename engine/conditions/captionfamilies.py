"""How the captioning models of each `model_type` of transformers are checked, asked and read; a new family is one more
entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.conditions import localmodel
from engine.errors import ConfigError

KEY = "conditions.caption.path"
TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")  # of Florence: those that answer in plain text

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Family:
    """One class of captioning models.

    `model` names its class in transformers. `ask(processor, images, instruction)` makes what `generate` takes,
    left-padded where a decoder goes on writing behind it; `start(model, inputs)` counts the tokens that `generate`
    returns before the caption;
    `read(processor, tokens, instruction)` gives the words of the rest. `instruction` is the default one, None where the
    family takes none; `tasks` are the only ones, if not any. `files(folder)` checks what else it needs and gives those
    files. `half` is the dtype on CUDA.
    """

    model: str
    ask: Callable[[Any, Images, str], Any]
    start: Callable[[Any, Any], int]
    read: Callable[[Any, Any, str], list[str]]
    instruction: str | None = None
    tasks: tuple[str, ...] = ()
    files: Callable[[Path], list[Path]] = lambda folder: []
    half: str = "float16"


def _ask_image(processor: Any, images: Images, instruction: str) -> Any:
    return {"pixel_values": processor(images=list(images), return_tensors="pt")["pixel_values"]}


def _read_text(processor: Any, tokens: Any, instruction: str) -> list[str]:
    return list(processor.batch_decode(tokens, skip_special_tokens=True))


def _blip2_start(model: Any, inputs: Any) -> int:
    return 1 if model.language_model.config.is_encoder_decoder else int(model.config.num_query_tokens) + 1


def _blip2_files(folder: Path) -> list[Path]:
    if not isinstance(localmodel.config(folder, KEY).get("image_token_index"), int):
        fix = "use a newer export of the model (its config.json has image_token_index)"
        raise ConfigError(KEY, f"{folder} is an old export without image tokens", fix)
    return []


def _ask_chat(processor: Any, images: Images, instruction: str) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": instruction}]
    said = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template or processor.tokenizer.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    texts = [said] * len(images)
    return processor(text=texts, images=list(images), padding=True, padding_side="left", return_tensors="pt")


def _chat_files(folder: Path) -> list[Path]:
    templates = [p for p in (folder / "chat_template.jinja", folder / "chat_template.json") if p.is_file()]
    tokenizer = "tokenizer_config.json"
    if not templates and (
        not (folder / tokenizer).is_file() or "chat_template" not in localmodel.config(folder, KEY, tokenizer)
    ):
        raise ConfigError(KEY, f"{folder} has no chat_template.jinja", "copy the model's chat template too")
    return templates


def _ask_task(processor: Any, images: Images, instruction: str) -> Any:
    return processor(text=[instruction] * len(images), images=list(images), padding=True, return_tensors="pt")


def _read_task(processor: Any, tokens: Any, instruction: str) -> list[str]:
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [processor.post_process_generation(text=text, task=instruction)[instruction] for text in texts]


def _task_files(folder: Path) -> list[Path]:
    name = "processor_config.json"
    rules = localmodel.config(folder, KEY, name).get("post_processor_config") if (folder / name).is_file() else None
    if not isinstance(rules, dict) or "pure_text" not in rules:
        what = f"{folder / name} has no post_processor_config for plain text"
        raise ConfigError(KEY, what, "use an export for transformers 5, such as those of florence-community")
    return []


def _qwen(model: str) -> Family:
    return Family(
        model,
        _ask_chat,
        lambda model, inputs: int(inputs["input_ids"].shape[1]),
        _read_text,
        instruction="Describe this image in one short sentence.",
        files=_chat_files,
        half="bfloat16",
    )


BLIPS = {
    "blip": Family("BlipForConditionalGeneration", _ask_image, lambda model, inputs: 1, _read_text),
    "blip-2": Family("Blip2ForConditionalGeneration", _ask_image, _blip2_start, _read_text, files=_blip2_files),
}
FAMILIES = {
    **BLIPS,
    "qwen2_vl": _qwen("Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": _qwen("Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": _qwen("Qwen3VLForConditionalGeneration"),
    "florence2": Family(
        "Florence2ForConditionalGeneration",
        _ask_task,
        lambda model, inputs: 1,
        _read_task,
        instruction=TASKS[0],
        tasks=TASKS,
        files=_task_files,
    ),
}
KINDS = {"blip": BLIPS, "model": FAMILIES}  # which models a recipe's `conditions.caption.kind` takes
