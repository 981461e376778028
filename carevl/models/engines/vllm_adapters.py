"""Which models vLLM computes with an adapter as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

from carevl.errors import reading
from carevl.models.hub import find_config
from carevl.models.locate import locate

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of configurations that count the experts of a mixture."""
_JOINED = ("glm4v", "glm46v")
"""Families with one linear layer for gate and up projection: vLLM computes an adapter of it as something else."""


def find_unread_adapters(path: str, revision: str | None = None) -> str | None:
    """Return what of a judge vLLM cannot adapt as it is trained; None where it can, or nothing is known of the judge.

    Args:
        path: as in the settings: a directory, a hub id, or a path with a scheme.
    """
    directory = Path(locate(path, revision))
    file = directory / "config.json" if directory.is_dir() else find_config(path, revision)
    if file is None:
        return None
    with reading(file):
        config = json.loads(file.read_text(encoding="utf-8"))
    if any(config.get(field) or config.get("text_config", {}).get(field) for field in _EXPERTS):
        return "the fused experts of a mixture"
    return "the layers that are gate and up projection in one" if config.get("model_type") in _JOINED else None
