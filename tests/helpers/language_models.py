"""Tiny language models of several architectures, whose numbers depend on what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.families.chats import chatml
from tests.helpers.families.parts import text
from tests.helpers.families.tokenizer import make_tokenizer

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 16, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "Cohere": {"logit_scale": 0.5},
    "Granite": {"logits_scaling": 3.0},
    "Qwen3_5Text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
"""What their configurations have besides sizes: windows, caps and scales that a reader may miss."""
PLAIN = ("Qwen3_5Text", "Gemma2")
"""Those whose texts share no beginning: a state runs over the tokens, or scores of attention are capped."""


def write_language_model(architecture: str, directory: Path, dtype: str = "float32") -> Path:
    """Write a language model with random weights and its tokenizer, as on the hub; return the directory."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    tokenizer = make_tokenizer(["<|im_start|>"])
    tokenizer.chat_template = chatml("")
    config = getattr(hf, f"{architecture}Config")(**{**text(tokenizer), **ARCHITECTURES[architecture]})
    model = hf.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:  # the usual 0.02 makes numbers of so small a model independent of what it reads
            torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else weight.shape[-1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
