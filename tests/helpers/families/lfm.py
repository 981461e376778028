"""LFM2-VL."""

from __future__ import annotations

import transformers as hf

from tests.helpers.families.chats import chatml
from tests.helpers.families.parts import TIED, Parts, text, tower
from tests.helpers.families.tokenizer import make_tokenizer


def lfm2_vl() -> Parts:
    """LFM2-VL: a layer of convolution, then one of attention; only the template writes the start token."""
    named = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    named |= {"image_thumbnail_token": "<|img_thumbnail|>"}
    rows = [f"<|img_row_{i}_col_{j}|>" for i in (1, 2) for j in (1, 2)]
    tokenizer = make_tokenizer(["<|im_start|>", *rows], bos="<|startoftext|>", pad="<|pad|>", named=named)
    layers = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_auto_adjust_ff_dim": False}
    layers |= {"conv_dim": 64, "block_dim": 64}  # vLLM reads them
    vision = tower(model_type="siglip2_vision_model", patch_size=16, num_patches=16, vision_use_head=False)
    del vision["image_size"]
    config = hf.Lfm2VlConfig(
        text_config=text(tokenizer, without=TIED, model_type="lfm2", **layers),
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=64,
    )
    image = hf.Lfm2VlImageProcessor(
        tile_size=64, min_image_tokens=1, max_image_tokens=4, size={"height": 64, "width": 64}, max_tiles=4
    )
    processor = hf.Lfm2VlProcessor(
        image_processor=image, tokenizer=tokenizer, chat_template=chatml("<image>", start="<|startoftext|>")
    )
    return Parts(hf.Lfm2VlForConditionalGeneration(config), processor)
