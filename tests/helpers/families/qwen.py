"""Qwen2-VL to Qwen3.5."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.families.chats import chatml
from tests.helpers.families.parts import WHOLE_HEADS, Parts, rope, text
from tests.helpers.families.tokenizer import make_tokenizer

_MARKS = ("vision_start", "vision_end", "image_pad", "video_pad")
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ENDS = ("<|im_end|>", "<|endoftext|>")
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
"""Of another size than the hidden one: fused weights that lie the wrong way round do not fit."""


def _tokenizer() -> Any:
    return make_tokenizer(["<|im_start|>", *(f"<|{name}|>" for name in _MARKS)])


def _ids(tokenizer: Any) -> dict[str, int]:
    keys = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, _MARKS, strict=True)}


def _processor(kind: Any, tokenizer: Any, patch: int, video: Any, *, system: str = "") -> Any:
    side = 2 * patch
    size = {"shortest_edge": side * side, "longest_edge": 16 * side * side}
    return kind(
        image_processor=hf.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=video(patch_size=patch),
        chat_template=chatml(_IMAGE, system=system),
    )


def qwen2_vl() -> Parts:
    tokenizer = _tokenizer()
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    words = text(tokenizer, without=WHOLE_HEADS, **rope(4, 6, 6))
    config = hf.Qwen2VLConfig(text_config=words, vision_config=vision, **_ids(tokenizer))
    processor = _processor(hf.Qwen2VLProcessor, tokenizer, 14, hf.Qwen2VLVideoProcessor, system=_SYSTEM)
    return Parts(hf.Qwen2VLForConditionalGeneration(config), processor, ENDS)


def qwen2_5_vl() -> Parts:
    tokenizer = _tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "out_hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    words = text(tokenizer, without=WHOLE_HEADS, **rope(4, 6, 6))
    config = hf.Qwen2_5_VLConfig(text_config=words, vision_config=vision, **_ids(tokenizer))
    processor = _processor(hf.Qwen2_5_VLProcessor, tokenizer, 14, hf.Qwen2VLVideoProcessor, system=_SYSTEM)
    return Parts(hf.Qwen2_5_VLForConditionalGeneration(config), processor, ENDS)


def _qwen3_tower(**more: Any) -> dict[str, Any]:
    sizes = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96, "num_heads": 2}
    return sizes | {"patch_size": 16, "num_position_embeddings": 64} | more


def _qwen3(kind: str, tokenizer: Any, words: dict[str, Any], **vision: Any) -> Parts:
    config = getattr(hf, f"{kind}Config")(text_config=words, vision_config=_qwen3_tower(**vision), **_ids(tokenizer))
    processor = _processor(hf.Qwen3VLProcessor, tokenizer, 16, hf.Qwen3VLVideoProcessor)
    return Parts(getattr(hf, f"{kind}ForConditionalGeneration")(config), processor, ENDS)


def qwen3_vl() -> Parts:
    tokenizer = _tokenizer()
    words = text(tokenizer, **rope(4, 6, 6, mrope_interleaved=True))
    return _qwen3("Qwen3VL", tokenizer, words, deepstack_visual_indexes=[0])


def qwen3_vl_moe() -> Parts:
    tokenizer = _tokenizer()
    words = text(tokenizer, **rope(4, 6, 6, mrope_interleaved=True), **_EXPERTS, norm_topk_prob=True)
    return _qwen3("Qwen3VLMoe", tokenizer, words, deepstack_visual_indexes=[0])


def linear_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Return a language model of Qwen3.5: a layer of linear attention, then one of full attention."""
    linear = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    turned = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.25)
    return text(tokenizer, layer_types=["linear_attention", "full_attention"], **linear, **turned, **more)


def qwen3_5() -> Parts:
    tokenizer = _tokenizer()
    return _qwen3("Qwen3_5", tokenizer, linear_text(tokenizer))


def qwen3_5_moe() -> Parts:
    tokenizer = _tokenizer()
    words = linear_text(tokenizer, **_EXPERTS, shared_expert_intermediate_size=48)
    return _qwen3("Qwen3_5Moe", tokenizer, words)
