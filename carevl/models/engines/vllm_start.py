"""How a vLLM engine starts inside the calling process, and ends."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carevl.models.device import check_vllm_build
from carevl.models.engines.card import Card, find_card, free_bytes, wait_for_room
from carevl.models.engines.vllm_arguments import check_engine_args, needed_bytes, read_shape, vllm_arguments
from carevl.models.locate import loading_arguments, model_directory
from carevl.models.quantization import explain_quantization

if TYPE_CHECKING:
    from carevl.settings.models import Model

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_RAISE_ON_LOGIT_NANS": "1",  # by itself it writes token 0 then
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiled with nvcc at its first use; requests with seeds pass it by
}
_ON_CPU = {"VLLM_MLA_DISABLE": "1"}
"""Of models without MLA, vLLM's CPU platform asks in a way that Qwen3-VL's configuration has no answer to."""

_SITE = str(Path(__file__).parents[2] / "_site")


def prepare_import(model: Model, card: Card | None) -> None:
    """Set vLLM's environment variables, unless they are set already, and check that it fits this machine."""
    environment = _ENVIRONMENT | (_ON_CPU if card is None else {})
    if model.tensor_parallel > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # by itself it wants a NUMA node for each process
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([_SITE, *filter(None, paths)]))
    check_vllm_build()


def start_engine(
    model: Model, runner: Literal["generate", "pooling"], *, cuts_tiles: bool = False, **arguments: Any
) -> Any:
    """Build a vLLM engine in this process; settings already in the environment win over ours.

    Raises:
        UserError: see `vllm_arguments`, `check_engine_args`, `wait_for_room` and `explain_quantization`.
    """
    card = find_card()
    prepare_import(model, card)
    check_engine_args(model)
    path = model_directory(model)
    shape = replace(read_shape(path, model.dtype, loading_arguments(model)), cuts_tiles=cuts_tiles)
    arguments = vllm_arguments(model, path, shape, card, runner) | arguments
    if card is not None:
        wait_for_room(needed_bytes(arguments, card), lambda: free_bytes(model.tensor_parallel))
    import torch
    from vllm import LLM

    default = torch.get_default_dtype()
    try:
        with explain_quantization("vllm", model, path):
            return LLM(**arguments)
    finally:  # where it does not start, vLLM leaves the format of its model as that of everything made later
        torch.set_default_dtype(default)


def shut_down(engine: Any) -> None:
    """End an engine and its processes, and give its memory back."""
    engine.llm_engine.engine_core.shutdown()
    free_memory()


def free_memory() -> None:
    """Give back the memory of what is no longer used, such as an engine whose start failed."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
