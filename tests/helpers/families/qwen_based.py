"""Families whose language model is one of Qwen's: InternVL, LLaVA-OneVision, Ovis 2, MiniCPM-V 4.6."""

from __future__ import annotations

import transformers as hf

from tests.helpers.families.chats import chatml, onevision
from tests.helpers.families.parts import SQUARE, WHOLE_HEADS, Parts, siglip, text, tower
from tests.helpers.families.qwen import ENDS, linear_text
from tests.helpers.families.tokenizer import make_tokenizer


def internvl() -> Parts:
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = make_tokenizer(["<|im_start|>"], named=named)
    config = hf.InternVLConfig(
        text_config=text(tokenizer, without=WHOLE_HEADS, model_type="qwen2"),
        vision_config=tower(image_size=[56, 56], patch_size=[14, 14]),
        image_seq_length=4,
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=12),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )
    return Parts(hf.InternVLForConditionalGeneration(config), processor)


def llava_onevision() -> Parts:
    points = [[56, 56], [56, 112], [112, 56], [112, 112]]
    tokenizer = make_tokenizer(["<|im_start|>", "<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        text_config=text(tokenizer, without=WHOLE_HEADS, model_type="qwen2"),
        vision_config=siglip(vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=points,
        vision_aspect_ratio="anyres_max_4",
        tie_word_embeddings=False,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=points),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=onevision("<image>\n"),
    )
    return Parts(hf.LlavaOnevisionForConditionalGeneration(config), processor)


def ovis2() -> Parts:
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = make_tokenizer(["<|im_start|>", "<image>", "<IMG_ATOM>", *marks])
    config = hf.Ovis2Config(
        text_config=text(tokenizer, without=WHOLE_HEADS),
        vision_config=tower(vocab_size=64, hidden_stride=2, num_visual_indicator_tokens=len(marks)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(marks),
        vocab_size=len(tokenizer),
        hidden_size=64,
        tie_word_embeddings=False,
    )
    processor = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chatml("<image>\n"),
    )
    return Parts(hf.Ovis2ForConditionalGeneration(config), processor, ENDS)


def minicpmv4_6() -> Parts:
    pairs = ("image", "slice", "image_id")
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {f"{name}_start_token": f"<{name}>" for name in pairs}
    named |= {f"{name}_end_token": f"</{name}>" for name in pairs}
    tokenizer = make_tokenizer(["<|im_start|>"], named=named)
    config = hf.MiniCPMV4_6Config(
        text_config=linear_text(tokenizer, model_type="qwen3_5_text"),
        vision_config=tower(image_size=112),
        insert_layer_id=0,
        image_size=112,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    processor = hf.MiniCPMV4_6Processor(
        image_processor=hf.MiniCPMV4_6ImageProcessorPil(scale_resolution=112, patch_size=14, max_slice_nums=2),
        tokenizer=tokenizer,
        video_processor=hf.MiniCPMV4_6VideoProcessor(),
        chat_template=chatml("<|image_pad|>\n"),
    )
    return Parts(hf.MiniCPMV4_6ForConditionalGeneration(config), processor, ENDS)
