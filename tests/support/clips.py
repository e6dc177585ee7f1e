"""Tiny CLIP, open_clip, BLIP and BLIP-2 directories with random weights and real tokenizer and processor files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    GPT2Tokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges; the end token has the highest id, as in OpenAI's."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=LENGTH)


def write_processor(folder: Path, size: int) -> None:
    """CLIP's preprocessing at another size."""
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)


def write_clip(
    folder: Path, *, size: int = 16, projection: int = 24, seed: int = 0, tokenizer: bool = True
) -> CLIPModel:
    """A CLIPModel directory: patches of 8 pixels, two layers, features `projection` wide."""
    torch.manual_seed(seed)
    words = clip_tokenizer()
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "hidden_act": "gelu"}
    end, start = words.convert_tokens_to_ids(END), words.convert_tokens_to_ids(START)
    ids = {"eos_token_id": end, "bos_token_id": start, "pad_token_id": end}
    config = CLIPConfig(
        text_config={"hidden_size": 32, "vocab_size": len(words), "max_position_embeddings": LENGTH, **ids, **shared},
        vision_config={"hidden_size": 64, "image_size": size, "patch_size": 8, **shared},
        projection_dim=projection,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    write_processor(folder, size)
    if tokenizer:
        words.save_pretrained(folder)
    return model


def write_vision(folder: Path, clip: CLIPModel) -> CLIPVisionModelWithProjection:
    """`image_encoder` and `feature_extractor` of a generator, from the image tower of a CLIPModel."""
    config = clip.config.vision_config
    config.projection_dim = clip.config.projection_dim
    model = CLIPVisionModelWithProjection(config).eval()
    model.load_state_dict(clip.state_dict(), strict=False)
    model.save_pretrained(folder / "image_encoder")
    write_processor(folder / "feature_extractor", config.image_size)
    return model


def write_open_clip(folder: Path, clip: CLIPModel, *, weights: str = "open_clip_model.safetensors") -> None:
    """The same model as a `local-dir:` folder of open_clip."""
    text, vision = clip.config.text_config, clip.config.vision_config
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": clip.config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "hf_tokenizer_name": "local",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    clip_tokenizer().save_pretrained(folder)
    save_file(_open_clip_state(clip), folder / weights)


def _open_clip_state(clip: CLIPModel) -> dict[str, torch.Tensor]:
    """transformers' parameters under open_clip's names: q, k, v in one matrix, projections transposed."""
    old = clip.state_dict()
    new = {
        "visual.class_embedding": old["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": old["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": old["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": old["visual_projection.weight"].T,
        "token_embedding.weight": old["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": old["text_model.embeddings.position_embedding.weight"],
        "text_projection": old["text_projection.weight"].T,
        "logit_scale": old["logit_scale"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for i in range(2):
            source, target = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            norms |= {f"{target}.ln_{n}": f"{source}.layer_norm{n}" for n in (1, 2)}
            norms[f"{target}.attn.out_proj"] = f"{source}.self_attn.out_proj"
            norms |= {f"{target}.mlp.c_fc": f"{source}.mlp.fc1", f"{target}.mlp.c_proj": f"{source}.mlp.fc2"}
            for kind in ("weight", "bias"):
                parts = [old[f"{source}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                new[f"{target}.attn.in_proj_{kind}"] = torch.cat(parts)
    for target, source in norms.items():
        new |= {f"{target}.{kind}": old[f"{source}.{kind}"] for kind in ("weight", "bias")}
    return {name: tensor.contiguous() for name, tensor in new.items()}


def write_blip(folder: Path) -> BlipForConditionalGeneration:
    """A BlipForConditionalGeneration directory with a word-piece tokenizer."""
    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "a",
        "cat",
        "dog",
        "mat",
        "red",
        "blue",
        "on",
        "the",
    ]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    shared = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_size": 32,
        "initializer_range": 0.5,
    }
    ids = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    config = BlipConfig(
        text_config={
            "vocab_size": len(words),
            "encoder_hidden_size": 32,
            "max_position_embeddings": 64,
            **ids,
            **shared,
        },
        vision_config={"image_size": 16, "patch_size": 8, **shared},
        projection_dim=16,
    )
    model = BlipForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return model


def write_blip2(folder: Path) -> Blip2ForConditionalGeneration:
    """A Blip2ForConditionalGeneration directory with an OPT language model and a byte-level tokenizer."""
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = GPT2Tokenizer(
        vocab=vocab, merges=[], bos_token="</s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    processor = Blip2Processor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer, num_query_tokens=4)
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "initializer_range": 0.5}
    config = Blip2Config(
        vision_config={"image_size": 16, "patch_size": 8, "intermediate_size": 64, **shared},
        qformer_config={"encoder_hidden_size": 32, "intermediate_size": 64, "vocab_size": 10, **shared},
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "init_std": 0.5,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            **shared,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
