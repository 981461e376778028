"""Families of LLaVA's shape whose language model is a Llama: LLaVA and its kin, Idefics 3, SmolVLM, DeepSeek-VL."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.families.chats import deepseek, idefics, vicuna
from tests.helpers.families.parts import SQUARE, Parts, clip, siglip, text, tower
from tests.helpers.families.tokenizer import make_tokenizer

_POINTS = [[56, 112], [112, 56], [112, 112]]
"""The resolutions that LLaVA-NeXT cuts into tiles."""


def _tokenizer() -> Any:
    return make_tokenizer(["<image>"], bos="<s>", eos="</s>", pad="<unk>", writes_bos=True)


def _config(kind: Any, tokenizer: Any, **more: Any) -> Any:
    return kind(
        text_config=text(tokenizer, model_type="llama"),
        vision_config=clip(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=False,
        **more,
    )


def _processor(kind: Any, tokenizer: Any, image: Any) -> Any:
    return kind(
        image_processor=image,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=vicuna("<image>\n"),
    )


def _cropped() -> Any:
    return hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)


def llava() -> Parts:
    tokenizer = _tokenizer()
    layer = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    model = hf.LlavaForConditionalGeneration(_config(hf.LlavaConfig, tokenizer, **layer))
    return Parts(model, _processor(hf.LlavaProcessor, tokenizer, _cropped()))


def llava_next() -> Parts:
    tokenizer = _tokenizer()
    layer = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    config = _config(hf.LlavaNextConfig, tokenizer, **layer, image_grid_pinpoints=_POINTS)
    image = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=_POINTS)
    return Parts(hf.LlavaNextForConditionalGeneration(config), _processor(hf.LlavaNextProcessor, tokenizer, image))


def vipllava() -> Parts:
    tokenizer = _tokenizer()
    model = hf.VipLlavaForConditionalGeneration(_config(hf.VipLlavaConfig, tokenizer, vision_feature_layers=[-2, -1]))
    return Parts(model, _processor(hf.LlavaProcessor, tokenizer, _cropped()))


def _idefics(kind: str, tokenizer: Any, start: str, ends: tuple[str, ...], **more: Any) -> Parts:
    config = getattr(hf, f"{kind}Config")(
        text_config=text(tokenizer, model_type="llama"),
        vision_config=tower(),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    image = getattr(hf, f"{kind}ImageProcessorPil")(**_TILES)
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=image, tokenizer=tokenizer, image_seq_len=4, chat_template=idefics("<image>", start), **more
    )
    return Parts(getattr(hf, f"{kind}ForConditionalGeneration")(config), processor, ends)


_TILES = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
_ROWS = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
_IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_ROWS]


def idefics3() -> Parts:
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = make_tokenizer(_IDEFICS, bos=bos, eos=eos, pad="<|reserved_special_token_0|>", writes_bos=True)
    return _idefics("Idefics3", tokenizer, bos, (eos, "<end_of_utterance>"))


def smolvlm() -> Parts:
    """SmolVLM: the processor needs the package num2words."""
    bos, eos = "<|im_start|>", "<end_of_utterance>"
    tokenizer = make_tokenizer(_IDEFICS, bos=bos, eos=eos, pad="<|im_end|>")
    return _idefics("SmolVLM", tokenizer, bos, (), video_processor=hf.SmolVLMVideoProcessor(**_TILES))


def deepseek_vl() -> Parts:
    bos, eos, image = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"
    tokenizer = make_tokenizer(bos=bos, eos=eos, pad="<｜▁pad▁｜>", writes_bos=True, named={"image_token": image})
    config = hf.DeepseekVLConfig(
        text_config=text(tokenizer, model_type="llama"),
        vision_config=siglip(vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids(image),
        tie_word_embeddings=False,
    )
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessorPil(size=SQUARE),
        tokenizer=tokenizer,
        chat_template=deepseek(image, bos, eos),
        num_image_tokens=16,
    )
    return Parts(hf.DeepseekVLForConditionalGeneration(config), processor)
