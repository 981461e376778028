"""Random weights by which it matters what a token attends to, and names of weights as they are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SHARPNESS = 3.0
"""Standard deviation of the scores of attention. Models made anew have 0.02 and attend to everything alike."""


def randomize(model: Any, seed: int) -> None:
    """Draw all weights of a model anew: what it computes is of size 1, attention is sharp, biases are not 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    embedding, decoder = model.get_input_embeddings(), model.get_decoder()
    tied = model.get_output_embeddings().weight is embedding.weight
    # A tied model repeats its last token for ever unless that is small beside what it computes.
    size = 0.1 / float(getattr(embedding, "embed_scale", 1)) if tied else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim < 2:
                closed = "gate" in name and not weight.any()  # mllama's gates of images
                weight.copy_(drawn * 0.1 + (1 if closed else weight))
            elif "embed_tokens" in name:
                weight.copy_(drawn * size)
            else:
                fan = weight[0].numel() if weight.ndim == 4 else weight.shape[-1]
                weight.copy_(drawn * fan**-0.5)
        if tied:
            last = getattr(decoder, "norm", getattr(decoder, "embedding_norm", None))
            last.weight.add_(1 / (size * embedding.weight.shape[1] ** 0.5) - 1)  # logits of size 1
        for module in decoder.modules():
            if hasattr(module, "q_proj") and hasattr(module, "scaling"):
                _sharpen(module)


def _sharpen(attention: Any) -> None:
    factor = _SHARPNESS / (attention.scaling * attention.head_dim**0.5)
    norm = getattr(attention, "q_norm", getattr(attention, "q_layernorm", None))
    if norm is None:
        attention.q_proj.weight.mul_(factor)
    else:
        norm.weight.add_(factor - 1)  # whether it is the gain, or the gain less one


_WRAPPED = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")


def publish(file: Path, model: Any) -> None:
    """Store weights as published ones are. transformers reads them so, but does not write so what it makes anew.

    Towers of CLIP and SigLIP say `vision_tower.vision_model.`, and fused experts of Qwen3-VL lie the other way round.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    if getattr(model.config.vision_config, "model_type", "") in _WRAPPED:
        tower = re.compile(r"^((model\.)?vision_tower\.)(?!vision_model\.)")
        weights = {tower.sub(r"\1vision_model.", name): weight for name, weight in weights.items()}
    if model.config.model_type == "qwen3_vl_moe":
        for name in [name for name in weights if ".mlp.experts." in name]:
            weights[name] = weights[name].transpose(1, 2).contiguous()
    save_file(weights, file, {"format": "pt"})
