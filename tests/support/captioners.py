"""Tiny Qwen-VL and Florence-2 directories with random weights and real tokenizer and processor files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

# The chat template of Qwen2-VL, less its default system prompt and its videos.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SIDES = {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT |= {"intermediate_size": 64, "initializer_range": 0.3, "max_position_embeddings": 512}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
VISION = {"depth": 2, "num_heads": 2, "patch_size": 8, "initializer_range": 0.3}
QWENS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "classes": ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
        "vision": {"embed_dim": 32, "hidden_size": 32, **VISION},
        "text": {},
    },
    "qwen2_5_vl": {
        "classes": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
        "vision": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            **VISION,
        },
        "text": {},
    },
    "qwen3_vl": {
        "classes": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"),
        "vision": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            **VISION,
        },
        "text": {"head_dim": 16},
    },
}


def write_qwen(folder: Path, kind: str = "qwen2_vl") -> Any:
    """A Qwen-VL directory (`kind` of QWENS) with a byte-level tokenizer and a chat template."""
    torch.manual_seed(0)
    shape = QWENS[kind]
    config_class, model_class, processor_class = (getattr(transformers, name) for name in shape["classes"])
    vocab = {letter: i for i, letter in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>", *QWEN_TOKENS])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab, merges=[], eos_token="<|im_end|>", extra_special_tokens=list(QWEN_TOKENS)
    )
    names = dict(zip(("vision_start", "vision_end", "image", "video"), QWEN_TOKENS[2:], strict=True))
    ids = {f"{name}_token_id": vocab[token] for name, token in names.items()}
    ends = {"eos_token_id": vocab["<|im_end|>"], "pad_token_id": vocab["<|endoftext|>"], "bos_token_id": None}
    config = config_class(
        text_config={**TEXT, **shape["text"], **ends, "vocab_size": len(vocab), "rope_parameters": dict(ROPE)},
        vision_config=shape["vision"],
        **ids,
    )
    model = model_class(config).eval()
    model.generation_config.update(**ends, do_sample=True, temperature=0.7)  # as the released ones
    model.save_pretrained(folder)
    size = {"shortest_edge": SIDES["min_pixels"], "longest_edge": SIDES["max_pixels"]}
    processor_class(
        transformers.Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(patch_size=8, size=size),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return model


def write_florence(folder: Path) -> Any:
    """A Florence-2 directory: a DaViT of two stages, a BART of two layers, a byte-level tokenizer."""
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), "<image>"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = transformers.BartTokenizer(
        vocab=vocab, merges=[], model_max_length=128, extra_special_tokens={"image_token": "<image>"}
    )
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(words),
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 128,
            "init_std": 0.5,
            "forced_bos_token_id": 0,
            **ids,
        },
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
            "projection_dim": 32,
        },
        image_token_id=vocab["<image>"],
        **ids,
    )
    model = transformers.Florence2ForConditionalGeneration(config).eval()
    model.generation_config.update(
        **ids, num_beams=3, no_repeat_ngram_size=3, early_stopping=True
    )  # as the released ones
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 17  # 16 places and their mean
    transformers.Florence2Processor(images, tokenizer, post_processor_config={"pure_text": {}}).save_pretrained(folder)
    return model
