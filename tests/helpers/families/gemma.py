"""Gemma 3, Gemma 4 and PaliGemma."""

from __future__ import annotations

import transformers as hf
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

from tests.helpers.families.chats import bare, gemma
from tests.helpers.families.parts import SQUARE, TIED, Parts, siglip, text, tower
from tests.helpers.families.tokenizer import make_tokenizer

_NEWLINES = ["\n" * count for count in (1, 2, 3, 4)]
"""Tokens of their own in Gemma's vocabulary; vLLM looks them up."""
_LAYERS = ["sliding_attention", "full_attention"]


def gemma3(window: int = 512) -> Parts:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", pad="<pad>", writes_bos=True, named=named
    )
    tokenizer.add_tokens(_NEWLINES)
    config = hf.Gemma3Config(
        text_config=text(tokenizer, without=TIED, layer_types=_LAYERS, sliding_window=window, query_pre_attn_scalar=32),
        vision_config=siglip(vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=gemma("<start_of_image>", "<start_of_turn>", "<end_of_turn>"),
    )
    return Parts(hf.Gemma3ForConditionalGeneration(config), processor, ("<eos>", "<end_of_turn>"))


def gemma3_short() -> Parts:
    """Gemma 3 with a sliding window that is shorter than any prompt."""
    return gemma3(16)


def gemma4() -> Parts:
    """Gemma 4: an embedding for each layer, a cap on logits, and images that look ahead."""
    named = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
    named |= {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"}
    specials = ["<|turn>", "<turn|>", "<|video|>"]
    tokenizer = make_tokenizer(specials, bos="<bos>", eos="<eos>", pad="<pad>", writes_bos=True, named=named)
    words = text(
        tokenizer,
        without=TIED,
        layer_types=_LAYERS,
        sliding_window=512,
        global_head_dim=32,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=len(tokenizer),
        use_bidirectional_attention="vision",
        final_logit_softcapping=30.0,
    )
    vision = tower(num_key_value_heads=2, head_dim=32, patch_size=16, position_embedding_size=256)
    vision |= {"default_output_length": 70}  # vLLM reads it
    del vision["image_size"]
    config = hf.Gemma4Config(
        text_config=words,
        vision_config=vision,
        audio_config=None,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessorPil(max_soft_tokens=70),
        tokenizer=tokenizer,
        video_processor=hf.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=gemma("<|image|>", "<|turn>", "<turn|>"),
    )
    return Parts(hf.Gemma4ForConditionalGeneration(config), processor, ("<eos>", "<turn|>"))


def paligemma() -> Parts:
    """PaliGemma: a prompt that sees all of itself, and no turns; published without a chat template."""
    tokenizer = make_tokenizer(bos="<bos>", eos="<eos>", pad="<pad>", named={"image_token": "<image>"})
    tokenizer.add_tokens([*EXTRA_TOKENS, *_NEWLINES])
    config = hf.PaliGemmaConfig(
        text_config=text(tokenizer, without=TIED, model_type="gemma"),
        vision_config=siglip(projection_dim=64, vision_use_head=False),
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tokenizer),
        image_token_index=tokenizer.image_token_id,
    )
    image = hf.SiglipImageProcessorPil(size=SQUARE)
    image.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=image, tokenizer=tokenizer, chat_template=bare("<image>"))
    return Parts(hf.PaliGemmaForConditionalGeneration(config), processor)
