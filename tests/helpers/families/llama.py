"""Llama 3.2 Vision (mllama) and Llama 4."""

from __future__ import annotations

import transformers as hf

from tests.helpers.families.chats import llama
from tests.helpers.families.parts import SQUARE, Parts, rope, text, tower
from tests.helpers.families.tokenizer import make_tokenizer

_BOS, _END = "<|begin_of_text|>", "<|end_of_text|>"


def mllama() -> Parts:
    """Llama 3.2 Vision: the placeholder of images lies behind the vocabulary, and has no logit."""
    tokenizer = make_tokenizer(
        ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", _END],
        bos=_BOS,
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        writes_bos=True,
        named={"image_token": "<|image|>"},
        named_last=True,
    )
    vision = tower(num_global_layers=1, attention_heads=2, intermediate_layers_indices=[0])
    vision |= {"vision_output_dim": 128, "max_num_tiles": 4}
    del vision["num_attention_heads"]
    config = hf.MllamaConfig(
        text_config=text(tokenizer, vocab_size=tokenizer.image_token_id, cross_attention_layers=[1], **rope()),
        vision_config=vision,
        image_token_index=tokenizer.image_token_id,
    )
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=llama("<|image|>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    )
    return Parts(hf.MllamaForConditionalGeneration(config), processor, (_END, "<|eom_id|>", "<|eot_id|>"))


def llama4(chunk: int = 1024) -> Parts:
    """Llama 4: attention in chunks, experts, and a layer without positions."""
    names = ("image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
    marks = ("header_start", "header_end", "end_of_text", "eom", "eot")
    tokenizer = make_tokenizer(
        [f"<|{name}|>" for name in (*names, *marks)],
        bos=_BOS,
        eos="<|eot|>",
        pad="<|finetune_right_pad|>",
        writes_bos=True,
    )
    words = text(
        tokenizer,
        intermediate_size_mlp=128,
        num_local_experts=2,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        moe_layers=[1],
        no_rope_layers=[1, 0],
        attention_chunk_size=chunk,
        use_qk_norm=False,  # as in Maverick: queries can be scaled
    )
    vision = tower(intermediate_size=256, vision_output_dim=64, projector_input_dim=64, projector_output_dim=64)
    config = hf.Llama4Config(
        text_config=words,
        vision_config=vision,
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    processor = hf.Llama4Processor(
        image_processor=hf.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
        chat_template=llama("<|image|>", "<|header_start|>{role}<|header_end|>\n\n", "<|eot|>"),
    )
    return Parts(hf.Llama4ForConditionalGeneration(config), processor, (_END, "<|eom|>", "<|eot|>"))


def llama4_short() -> Parts:
    """Llama 4 with chunks of attention that are shorter than any prompt."""
    return llama4(16)
