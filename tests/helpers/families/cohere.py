"""Aya Vision and Command A Vision (cohere2_vision)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers as hf

from tests.helpers.families.chats import cohere
from tests.helpers.families.parts import SQUARE, TIED, Parts, siglip, text
from tests.helpers.families.tokenizer import make_tokenizer

_IMAGE = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
_IMAGE |= {"image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>"}


def _tokenizer(specials: Sequence[str] = (), named: Mapping[str, str] | None = None) -> Any:
    turns = ["<|START_OF_TURN_TOKEN|>", *(f"<|{role}_TOKEN|>" for role in ("SYSTEM", "USER", "CHATBOT"))]
    return make_tokenizer(
        [*turns, *specials],
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        writes_bos=True,
        named=named,
    )


def _text(tokenizer: Any) -> dict[str, Any]:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512}
    return text(tokenizer, without=TIED, model_type="cohere2", logit_scale=0.25, **layers)


def aya_vision() -> Parts:
    tokenizer = _tokenizer(["<image>", *_IMAGE.values(), "TILE", "TILE_GLOBAL"])
    config = hf.AyaVisionConfig(
        text_config=_text(tokenizer),
        vision_config=siglip(vision_use_head=False),
        downsample_factor=2,
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=cohere("<image>"),
    )
    return Parts(hf.AyaVisionForConditionalGeneration(config), processor)


def cohere2_vision() -> Parts:
    tokenizer = _tokenizer(named=_IMAGE)
    config = hf.Cohere2VisionConfig(
        text_config=_text(tokenizer),
        vision_config=siglip(vision_use_head=False),
        downsample_factor=2,
        image_token_id=tokenizer.image_token_id,
        alignment_intermediate_size=128,
    )
    processor = hf.Cohere2VisionProcessor(
        image_processor=hf.Cohere2VisionImageProcessor(size=SQUARE, patch_size=2, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        chat_template=cohere("<|IMG_PATCH|>"),
    )
    return Parts(hf.Cohere2VisionForConditionalGeneration(config), processor)
