"""Engines of the shipped models, each loaded once in a process: vLLM takes 18 seconds for it."""

from __future__ import annotations

from functools import cache

from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.engines.vllm import VllmGenerator
from carevl.settings.models import Judge, Pool


@cache
def transformers_engine(name: str) -> ImageTextGenerator:
    """Return the shipped model of this name under transformers."""
    return ImageTextGenerator(WEIGHTS / name)


@cache
def vllm_engine(name: str) -> VllmGenerator:
    """Return the shipped model of this name under vLLM, as long as the model reads at most."""
    return VllmGenerator(Judge(path=f"miniworld:{name}", max_model_len=4096, pool=Pool(batch_size=16)))
