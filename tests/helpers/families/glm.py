"""GLM-4.1V, GLM-4.5V and GLM-4.6V."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.families.chats import glm
from tests.helpers.families.parts import Parts, rope, text
from tests.helpers.families.tokenizer import make_tokenizer

_MEDIA = ("begin_of_image", "image", "end_of_image", "begin_of_video", "video", "end_of_video")
_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")


def _glm(kind: str, reader: str, names: tuple[dict[str, Any], dict[str, Any]] = ({}, {}), **more: Any) -> Parts:
    """Return a model of `kind` with processors of `reader`; `names` go into its text and its vision configuration."""
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant", "observation")]
    specials = ["[gMASK]", "<sop>", *roles, *(f"<|{name}|>" for name in _MEDIA)]
    tokenizer = make_tokenizer(specials, eos="<|endoftext|>")
    keys = ("image_start", "image", "image_end", "video_start", "video", "video_end")
    ids = {
        f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for key, name in zip(keys, _MEDIA, strict=True)
    }
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "out_hidden_size": 64}
    vision |= {"image_size": 112, "patch_size": 14}
    words = text(tokenizer, **rope(2, 3, 3, partial_rotary_factor=0.5), **more)
    config = getattr(hf, f"{kind}Config")(text_config=words | names[0], vision_config=vision | names[1], **ids)
    size = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 16 * 28 * 28}
    processor = getattr(hf, f"{reader}Processor")(
        image_processor=getattr(hf, f"{reader}ImageProcessorPil")(size=size),
        tokenizer=tokenizer,
        video_processor=getattr(hf, f"{reader}VideoProcessor")(),
        chat_template=glm("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return Parts(getattr(hf, f"{kind}ForConditionalGeneration")(config), processor, _ENDS)


def glm4v() -> Parts:
    return _glm("Glm4v", "Glm4v")


def glm46v() -> Parts:
    return _glm("Glm46V", "Glm46V", ({"model_type": "glm4v_text"}, {"model_type": "glm4v_vision"}))


def glm4v_moe() -> Parts:
    """GLM-4.5V: a dense layer, then one of experts of which one is shared."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 48}
    groups = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    return _glm("Glm4vMoe", "Glm4v", **experts, **groups, use_qk_norm=False)
