"""Tiny reward models whose weights are quantised as published ones are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.heads import make_reward_tokenizer

_GROUP = 128
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs lies in which four bits of a number."""
CONFIGS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True, "version": "gemm"},
}


def write_whole(directory: Path) -> Path:
    """Write a Llama of two layers with a linear head and random float32 weights, large enough for groups of 128."""
    tokenizer = make_reward_tokenizer()
    config = hf.LlamaConfig(
        vocab_size=896,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = hf.LlamaForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else weight.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_packed(method: str, directory: Path, rounded: Path) -> None:
    """Write a model with linear layers of four bits.

    Args:
        method: `gptq` or `awq`.
        rounded: gets the same numbers in float32.
    """
    write_whole(rounded)
    whole = load_file(write_whole(directory) / "model.safetensors")
    packed, plain = {}, {}
    for name, weight in whole.items():
        if not name.endswith("proj.weight"):
            packed[name], plain[name] = weight.half(), weight
            continue
        stem = name.removesuffix(".weight")
        groups = weight.T.reshape(-1, _GROUP, weight.shape[0])  # [groups, 128, outputs]
        scales = (groups.abs().amax(1) / 7).half()
        levels = (groups / scales.float()[:, None]).round().clamp(-8, 7)
        plain[name] = (levels * scales.float()[:, None]).reshape(-1, weight.shape[0]).T.contiguous()
        numbers = (levels.int() + 8).reshape(-1, weight.shape[0])  # [inputs, outputs]
        packed |= {f"{stem}.{part}": tensor.contiguous() for part, tensor in _pack(method, numbers, scales).items()}
    save_file(packed, directory / "model.safetensors", {"format": "pt"})
    save_file(plain, rounded / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": CONFIGS[method]}
    (directory / "config.json").write_text(json.dumps(config))


def _pack(method: str, numbers: Tensor, scales: Tensor) -> dict[str, Tensor]:
    zeros = torch.full(scales.shape, 8, dtype=torch.int32)
    if method == "awq":
        return {
            "qweight": sum(numbers[:, column::8] << 4 * i for i, column in enumerate(_AWQ_ORDER)).int(),
            "qzeros": sum(zeros[:, column::8] << 4 * i for i, column in enumerate(_AWQ_ORDER)).int(),
            "scales": scales,
        }
    return {
        "qweight": sum(numbers[i::8] << 4 * i for i in range(8)).int(),
        "qzeros": sum((zeros[:, i::8] - 1) << 4 * i for i in range(8)).int(),
        "scales": scales,
        "g_idx": torch.arange(len(numbers), dtype=torch.int32) // _GROUP,
    }


def write_bitsandbytes(directory: Path) -> Path:
    """Write a model with linear layers of eight bits, as bitsandbytes stores them."""
    write_whole(directory)
    eight = hf.BitsAndBytesConfig(load_in_8bit=True)
    hf.AutoModelForSequenceClassification.from_pretrained(directory, quantization_config=eight).save_pretrained(
        directory
    )
    return directory


def write_eight_bit_floats(directory: Path) -> Path:
    """Write a model with linear layers of eight-bit floats, which have a scale for every 128 x 128 of them."""
    write_whole(directory)
    stored = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            stored[name] = weight.bfloat16()
            continue
        blocks = weight.reshape(weight.shape[0] // _GROUP, _GROUP, weight.shape[1] // _GROUP, _GROUP)
        scales = blocks.abs().amax((1, 3)) / 448  # the largest number of the format
        numbers = (blocks / scales[:, None, :, None]).reshape(weight.shape)
        stored |= {name: numbers.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    scheme = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [_GROUP] * 2}
    config |= {"dtype": "bfloat16", "quantization_config": scheme}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
