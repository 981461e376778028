"""What families have in common: the sizes of language models and vision towers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

SQUARE = {"height": 56, "width": 56}
"""The images of towers with one size."""


@dataclass(frozen=True)
class Parts:
    """A model, its processor, and the tokens that end what it writes (the tokenizer's alone, if none is named)."""

    model: Any
    processor: Any
    end_tokens: tuple[str, ...] = ()


def text(tokenizer: Any, *, without: Collection[str] = (), **more: Any) -> dict[str, Any]:
    """Return the sizes of a language model, the ids of its tokenizer, and more."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return {name: value for name, value in (sizes | more).items() if name not in without}


TIED = ("tie_word_embeddings",)
"""Left out where the family's output matrix is its embedding."""
WHOLE_HEADS = ("head_dim",)
"""Left out where a head is the hidden size divided by the heads, whatever the configuration says."""


def rope(*section: int, **more: Any) -> dict[str, Any]:
    """Return rotary embeddings; `section` are the dimensions of time, height and width."""
    sections = {"mrope_section": list(section)} if section else {}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **sections, **more}}


def tower(**more: Any) -> dict[str, Any]:
    """Return the sizes of a vision tower."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"image_size": 56, "patch_size": 14} | more


def siglip(**more: Any) -> dict[str, Any]:
    """Return a tower of SigLIP."""
    return tower(model_type="siglip_vision_model", **more)


def clip() -> dict[str, Any]:
    """Return a tower of CLIP."""
    return tower(model_type="clip_vision_model", projection_dim=32)


def pixtral() -> dict[str, Any]:
    """Return a tower of Pixtral."""
    return tower(model_type="pixtral", head_dim=32, image_size=112, **rope())
