"""Models that vLLM does not run: what is known of them before it starts, and errors of its start that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carevl.models.engines.vllm_arguments import read_shape
from carevl.models.locate import loading_arguments, model_directory
from carevl.models.row_errors import first_line, is_lost, is_out_of_memory

if TYPE_CHECKING:
    from carevl.models.engines.card import Card
    from carevl.settings.models import Model


def unsupported_reason(model: Model, card: Card | None) -> str | None:
    """Return why vLLM cannot run a vision-language model, as half a sentence; None where nothing is known against it.

    vLLM is imported for it.

    Args:
        card: None on a CPU.
    """
    from transformers import AutoConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import ModelRegistry

    path, loading = model_directory(model), loading_arguments(model)
    names = AutoConfig.from_pretrained(path, **loading).architectures or []
    # vLLM's general class rewrites transformers' own in place: nothing could be held against these any more, nor fall
    # back to them.
    if not ModelRegistry.get_supported_archs() & {*names}:
        return f"vllm has no class of its own for {', '.join(names)}"
    shape = read_shape(path, model.dtype, loading)
    if card is None and shape.stateful_layers and shape.dtype == "float32":
        return f"vllm does not compute {', '.join(shape.stateful_layers)} layers in float32 on a CPU"
    if card is None:
        try:
            config = EngineArgs(model=path, **loading).create_model_config()
        except Exception as error:  # of any kind: vLLM and transformers both read the configuration in it
            return f"vllm does not take its configuration ({first_line(error)})"
        if config.is_mm_prefix_lm:
            return "vllm lets no token of an image see a later one on a CPU, and the model lets them see each other"
    return None


def is_unsupported(error: BaseException) -> bool:
    """Tell whether an error of vLLM's start may mean that it cannot run the model, not that memory or a card lacks."""
    seen: BaseException | None = error
    while seen is not None:
        if is_out_of_memory(seen) or any(word in str(seen).lower() for word in ("memory", "kv cache")):
            return False
        seen = seen.__cause__ or seen.__context__
    return not is_lost(error)
