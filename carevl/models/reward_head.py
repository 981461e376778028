"""Loads a text reward model, and finds out what it is: where its head lies, whether it is bidirectional.

A head under another name in the weights (`v_head`, `reward_head`, `regression_layer`, …) is put in its place; without
one, transformers would draw a head at random and say so only in a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from carevl.errors import UserError


def load_reward_model(path: str | Path, dtype: str = "auto", **loading: Any) -> Any:
    """Load a `…ForSequenceClassification` with one output, every weight of it read from safetensors.

    Args:
        loading: `trust_remote_code`, handed to transformers.

    Raises:
        UserError: the model has another number of outputs, or its weights lack some that it needs.
        OSError: the directory lacks weights or configuration.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path, num_labels=1, **loading)
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **loading
        )
    except RuntimeError as error:
        if "size mismatch" not in str(error) and "mismatched" not in str(error):
            raise
        raise UserError(f"{path} has not one output; a reward model gives one score per conversation") from None
    missing = set(loaded["missing_keys"])
    heads = {name for name in missing if not name.startswith(f"{model.base_model_prefix}.")}
    if missing - heads:
        raise UserError(f"{path} lacks weights of its body, such as {min(missing - heads)}: it is not a whole model")
    if heads:
        _adopt_head(model, path, heads, set(loaded["unexpected_keys"]))
    return model.eval()


def _adopt_head(model: Any, path: str | Path, missing: set[str], unused: set[str]) -> None:
    """Put the one [1, hidden] weight that has no place in the model where the model's head is missing."""
    hidden = model.config.get_text_config().hidden_size
    candidates = {name: tensor for name, tensor in _tensors(path, unused) if tensor.shape in ((1, hidden), (hidden,))}
    weights = [name for name in candidates if name.endswith(".weight")]
    target = _single_head(model)
    if len(weights) != 1 or target is None:
        others = f"; it has {', '.join(sorted(unused)[:4])} instead" if unused else ""
        raise UserError(f"{path} has no weights for its head {', '.join(sorted(missing))}{others}; a score needs one")
    weight = candidates[weights[0]].reshape(1, hidden)
    bias = dict(_tensors(path, unused)).get(weights[0].removesuffix("weight") + "bias")
    head = nn.Linear(hidden, 1, bias=bias is not None, dtype=model.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias.reshape(1))
    model.set_submodule(target, head)


def _tensors(path: str | Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield named tensors of a model's safetensors files."""
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in names.intersection(weights.keys()):
                yield name, weights.get_tensor(name)


def _single_head(model: Any) -> str | None:
    """Return the name of the one linear module with one output that stands directly beside the body, if any."""
    names = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and isinstance(module, nn.Linear) and module.out_features == 1
    ]
    return names[0] if len(names) == 1 else None


def head(model: Any) -> nn.Module | None:
    """Return the linear map from a hidden state to the score, None where the model has something else between them."""
    name = _single_head(model)
    return None if name is None else model.get_submodule(name)


def probe_ids(model: Any, tokens: int, n: int) -> Tensor:
    """Return int64 [n, tokens]: arbitrary ids, none of them the padding; the same ones every time."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (n, tokens), generator=torch.Generator().manual_seed(0))
    padding = model.config.get_text_config().pad_token_id
    return torch.where(ids == padding, (ids + 1) % vocabulary, ids).to(model.device)


@torch.inference_mode()
def is_bidirectional(model: Any) -> bool:
    """Tell, by trying, whether the first token's state depends on the tokens after it: bidirectional attention."""
    ids = probe_ids(model, 12, 2)
    ids[1, 0] = ids[0, 0]
    first, second = model.base_model(input_ids=ids).last_hidden_state[:, 0].float()
    return bool((first - second).abs().max() > 1e-3 * first.abs().max())
