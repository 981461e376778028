"""State of a training as files that hold no code: tensors as safetensors, all else as JSON in their header.

DeepSpeed's own checkpoints are pickles, which run what they name when they are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_STATE = "state"
_UNREAD = ("ds_config", "param_slice_mappings", "param_shapes", "frozen_param_shapes", "frozen_param_fragments")
"""Of DeepSpeed's state what only tools of its own read."""


class StateFiles(TorchCheckpointEngine):  # type: ignore[misc]
    """What DeepSpeed writes and reads checkpoints with, in place of pickles; names of files are DeepSpeed's.

    Attributes:
        written: the files written since the last `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Path] = []

    def begin(self) -> None:
        """Begin a checkpoint."""
        self.written = []

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Write a state."""
        save_state(state_dict, Path(path))
        self.written.append(Path(path))

    def check(self, file: Path) -> None:
        """Check that a file holds a state; errors as for `check_state`."""
        check_state(file)

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Return a state, on the CPU."""
        del map_location
        return load_state(Path(path))


def save_state(state: Mapping[str, Any], file: Path) -> None:
    """Write a tree of dictionaries, lists, tensors and plain values.

    Raises:
        OSError: the file cannot be written.
        TypeError: something in it is of another type.
    """
    tensors = _Tensors()
    tree = _encode(state, tensors)
    try:
        save_file(tensors.by_name, file, {_STATE: json.dumps(tree)})
    except SafetensorError as error:
        raise OSError(f"{file}: {error}") from error


def load_state(file: Path) -> dict[str, Any]:
    """Return what `save_state` wrote; errors as for `check_state`."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
            state: dict[str, Any] = _decode(json.loads(stored.metadata()[_STATE]), tensors)
            return state
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no state of a training: {error}") from error


def check_state(file: Path) -> None:
    """Read the header of what `save_state` wrote.

    Raises:
        ValueError: the file is another.
        OSError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            if _STATE not in (stored.metadata() or {}):
                raise ValueError(f"{file} holds no state of a training")
    except SafetensorError as error:
        raise ValueError(f"{file} holds no state of a training: {error}") from error


class _Tensors:
    """The tensors of a state by the names that its tree has for them; one that occurs twice is stored once."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self.names: dict[Any, str] = {}

    def add(self, tensor: torch.Tensor) -> str:
        tensor = tensor.detach()
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        if place not in self.names:
            name = self.names[place] = str(len(self.names))
            self.by_name[name] = tensor.contiguous()
        return self.names[place]


def _encode(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": tensors.add(value)}
    if isinstance(value, Mapping):
        kept = [(key, each) for key, each in value.items() if key not in _UNREAD]
        return {"dict": [[_encode(key, tensors), _encode(each, tensors)] for key, each in kept]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(each, tensors) for each in value]}
    if isinstance(value, Enum):
        return _encode(value.value, tensors)
    if type(value) is LossScaler:
        return {"loss_scale": value.loss_scale}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(key, tensors): _decode(value, tensors) for key, value in content}
    if kind == "loss_scale":
        return LossScaler(content)
    values = [_decode(each, tensors) for each in content]
    return values if kind == "list" else tuple(values)
