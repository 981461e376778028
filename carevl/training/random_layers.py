"""A model whose weights are not here, or too large: two layers of its language model, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.models.device import device
from carevl.models.engines.card import GIB
from carevl.models.flex_attention import FLEX
from carevl.models.memory import free_memory
from carevl.models.own_code import code_arguments
from carevl.models.tree_attention import TREES, set_attention

LAYERS = 2


def build_random_layers(directory: Path) -> Any:
    """Return a model of a configuration with two layers in its language model, of different kinds where it has several.

    Their weights are scaled so that every layer matters: with those that a training begins with, attention is nearly
    even, and a wrong mask would hardly show.

    Raises:
        UserError: it cannot be built, or memory is too small for it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    def build() -> Any:
        return AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", **code_arguments()
        )

    try:
        config = AutoConfig.from_pretrained(directory, **code_arguments())
        config = type(config).from_dict(shorten(config.to_dict()))
        with torch.device("meta"):
            needed, free = sum(weight.nbytes for weight in build().parameters()), free_memory()
        if needed > free:
            raise UserError(
                f"even two layers of {directory} take {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB of memory are "
                "free; check it on a machine with more"
            )
        torch.manual_seed(0)
        model = build()
    except UserError:
        raise
    except Exception as error:  # each architecture checks its fields in its own way
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"two layers of the configuration in {directory} cannot be built ({message}); fetch the weights to check it"
        ) from None
    _scale(model)
    set_attention(model, FLEX if device() == "cuda" else TREES)
    return model


def shorten(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with two layers in its language model: the first two of different kinds."""
    text = dict(config.get("text_config") or config)
    n = text["num_hidden_layers"]
    kept = _choose(text, n)
    for name, value in text.items():
        if _is_index(name, value, n):
            text[name] = [place for place, layer in enumerate(kept) if layer in value]
        elif isinstance(value, list) and len(value) == n:
            text[name] = [value[layer] for layer in kept]
    text["num_hidden_layers"] = len(kept)
    if "first_k_dense_replace" in text:  # the first layers of a mixture
        text["first_k_dense_replace"] = min(text["first_k_dense_replace"], 1)
    if "num_kv_shared_layers" in text:  # the last layers read keys and values of earlier ones
        text["num_kv_shared_layers"] = 0
    return {**config, "text_config": text} if config.get("text_config") else text


def _choose(text: dict[str, Any], n: int) -> Sequence[int]:
    """Return two layers, of different kinds where there are several."""

    def kind(layer: int) -> tuple[Any, ...]:
        lists = ((name, value) for name, value in text.items() if isinstance(value, list))
        return tuple(
            layer in value if _is_index(name, value, n) else value[layer]
            for name, value in lists
            if _is_index(name, value, n) or len(value) == n
        )

    other = next((layer for layer in range(1, n) if kind(layer) != kind(0)), 1)
    return [0, other][: min(n, LAYERS)]


def _is_index(name: str, value: Any, n: int) -> bool:
    """Return whether a field lists layers by number, as `cross_attention_layers` does."""
    if not (isinstance(value, list) and value and all(type(entry) is int for entry in value)):
        return False
    return name.endswith("layers") and sorted(set(value)) == value and value[-1] < n


def _scale(model: Any) -> None:
    import torch

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan = weight[0].numel() if weight.ndim == 4 else weight.shape[-1]
                weight.normal_(std=1.0 if "embed_tokens" in name and not tied else fan**-0.5)
            elif "gate" in name and not weight.any():
                weight.fill_(1.0)  # gates that begin closed
