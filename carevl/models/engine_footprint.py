"""The memory that a model takes in engine `transformers`: counted on the meta device, before anything is loaded."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from carevl.models.engines.vllm_arguments import read_shape
from carevl.models.footprint import Footprint
from carevl.models.locate import loading_arguments
from carevl.models.memory_count import count_forward

if TYPE_CHECKING:
    from carevl.models.engines.base import Runner
    from carevl.settings.models import Model

_log = logging.getLogger(__name__)


def transformers_footprint(model: Model, path: str, runner: Runner) -> Footprint | None:
    """Return what an actor takes: an expert with a row of `batch_tokens`, what writes with one text of full length.

    None where the model's directory lacks its weights.

    Args:
        path: the model's directory.
    """
    shape = read_shape(path, model.dtype, loading_arguments(model))
    if shape.weight_bytes is None:
        return None
    length = min(model.max_model_len, shape.longest or model.max_model_len)
    tokens = getattr(model, "batch_tokens", length)
    code = model.trust_remote_code
    return Footprint(
        shape.weight_bytes,
        activations=_activations(path, shape.dtype, tokens, code),
        cache=shape.cache_bytes * length if runner == "generate" else 0,
    )


@cache
def _activations(path: str, dtype: str, tokens: int, code: bool) -> int | None:
    try:
        return count_forward(_load_body(path, dtype, code), tokens)
    except Exception as error:  # architectures ask for numbers, each in its own place
        _log.info("activations of %s cannot be counted: %s", path, error)
        return None


def _load_body(path: str, dtype: str, code: bool) -> Any:
    """Return the language model of a directory without its head and its weights."""
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=code)
    number = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config, dtype=number, trust_remote_code=code)
    return model if config.get_text_config() is config else model.get_decoder()
