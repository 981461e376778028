"""Writes a family into a directory."""

from __future__ import annotations

import importlib
from pathlib import Path

_MODULES = {
    "qwen": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    "qwen_based": ("internvl", "llava_onevision", "ovis2", "minicpmv4_6"),
    "llava": ("llava", "llava_next", "vipllava", "idefics3", "smolvlm", "deepseek_vl"),
    "llama": ("mllama", "llama4"),
    "mistral": ("mistral3", "pixtral"),
    "gemma": ("gemma3", "gemma4", "paligemma"),
    "cohere": ("aya_vision", "cohere2_vision"),
    "glm": ("glm4v", "glm46v", "glm4v_moe"),
    "lfm": ("lfm2_vl",),
}
"""Where each is made; by the name of its functions."""

FAMILIES: tuple[str, ...] = tuple(sorted(name for names in _MODULES.values() for name in names))
PLAIN = ("lfm2_vl", "minicpmv4_6", "qwen3_5", "qwen3_5_moe")
"""Cannot share a prefix: linear attention or convolution."""
SHARING = tuple(name for name in FAMILIES if name not in PLAIN)
VARIANTS = {"gemma3_short": "gemma", "llama4_short": "llama"}
"""With a sliding window or chunks of attention of 16 tokens: shorter than any prompt."""


def write_family(name: str, directory: Path, *, seed: int = 0, dtype: str = "float32") -> None:
    """Write a model with random weights and its processor, as `from_pretrained` of transformers and vLLM read them.

    Args:
        name: one of `FAMILIES` or `VARIANTS`.
        seed: of the weights.
        dtype: of the stored weights.
    """
    import torch
    import transformers as hf

    from tests.helpers.families.weights import publish, randomize

    module = VARIANTS.get(name) or next(module for module, names in _MODULES.items() if name in names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = getattr(importlib.import_module(f"tests.helpers.families.{module}"), name)()
    randomize(parts.model, seed)
    tokenizer = parts.processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(list(parts.end_tokens)) or tokenizer.eos_token_id
    parts.model.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    parts.model.to(getattr(torch, dtype)).save_pretrained(directory)
    parts.processor.save_pretrained(directory)
    publish(directory / "model.safetensors", parts.model)
