"""Families whose language model is Mistral's: Mistral Small 3.1 and Pixtral."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.families.chats import mistral
from tests.helpers.families.parts import Parts, text
from tests.helpers.families.parts import pixtral as tower
from tests.helpers.families.tokenizer import make_tokenizer

_MARKS = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def _tokenizer() -> Any:
    return make_tokenizer(_MARKS, bos="<s>", eos="</s>", pad="<pad>", writes_bos=True)


def _config(kind: Any, tokenizer: Any, **more: Any) -> Any:
    return kind(
        text_config=text(tokenizer, model_type="mistral", sliding_window=None),
        vision_config=tower(),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **more,
    )


def _processor(tokenizer: Any, **more: Any) -> Any:
    return hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        chat_template=mistral("[IMG]"),
        **more,
    )


def mistral3() -> Parts:
    tokenizer = _tokenizer()
    model = hf.Mistral3ForConditionalGeneration(_config(hf.Mistral3Config, tokenizer, spatial_merge_size=2))
    return Parts(model, _processor(tokenizer, spatial_merge_size=2))


def pixtral() -> Parts:
    """Pixtral, as published for transformers: LLaVA's class with Pixtral's tower."""
    tokenizer = _tokenizer()
    config = _config(hf.LlavaConfig, tokenizer, vision_feature_select_strategy="full", image_seq_length=1)
    return Parts(hf.LlavaForConditionalGeneration(config), _processor(tokenizer))
