"""The body of a reward model in vLLM, without the tensors of its head, which vLLM would refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

_FORMAT = "carevl_body"


def body_arguments(architecture: str, left_out: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` that load a body alone, and give the state of each text's last token.

    Args:
        architecture: the class that generates with this body, as vLLM and transformers call it.
        left_out: names of stored tensors that the body does not take.
    """
    from vllm.config import PoolerConfig

    _register()
    return {
        "load_format": _FORMAT,
        "model_loader_extra_config": {"left_out": sorted(left_out)},
        "hf_overrides": {"architectures": [architecture]},
        "convert": "embed",
        "pooler_config": PoolerConfig(seq_pooling_type="LAST", use_activation=False),
    }


@cache
def _register() -> None:
    """Make the format known to vLLM in this process."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class BodyLoader(DefaultModelLoader):  # type: ignore[misc]  # vLLM's classes have no types
        """Reads safetensors, all but some."""

        def __init__(self, load_config: Any) -> None:
            self.left_out = {*load_config.model_loader_extra_config["left_out"]}
            super().__init__(replace(load_config, load_format="safetensors", model_loader_extra_config={}))

        def get_all_weights(self, model_config: Any, model: Any) -> Any:
            """Yield the tensors that are not left out, by name."""
            for name, tensor in super().get_all_weights(model_config, model):
                if name not in self.left_out:
                    yield name, tensor

    register_model_loader(_FORMAT)(BodyLoader)
