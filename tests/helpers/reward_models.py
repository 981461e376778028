"""Tiny reward models of the architectures that the presets for GPUs name."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.families.chats import chatml
from tests.helpers.families.parts import text
from tests.helpers.families.tokenizer import make_tokenizer

_ARCHITECTURES = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral"}


def write_reward_model(architecture: str, directory: Path, dtype: str = "bfloat16") -> Path:
    """Write a reward model with random weights and its tokenizer, as on the hub; return the directory."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    tokenizer = make_tokenizer(["<|im_start|>"])
    tokenizer.chat_template = chatml("")
    window = {"sliding_window": None} if architecture == "mistral" else {}
    kind = _ARCHITECTURES[architecture]
    config = getattr(hf, f"{kind}Config")(**text(tokenizer, num_labels=1, **window))
    model = getattr(hf, f"{kind}ForSequenceClassification")(config)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:  # the usual 0.02 makes scores of so small a model independent of what it reads
            torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else weight.shape[-1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
