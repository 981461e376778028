"""How the files of a model hold its weights: transformers renames, joins, splits and turns some while it loads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError, reading
from carevl.models.own_code import is_code_trusted
from carevl.models.stored_weights import INDEX, tensor_shapes, weight_files

if TYPE_CHECKING:
    from torch import Size, Tensor


class StoredLayout:
    """The weights that a model computes with, and the tensors in which its files hold them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def skeleton(self) -> Any:
        """The modules of the model, without weights."""
        from carevl.training.skeleton import load_skeleton

        return load_skeleton(self.directory)

    @cached_property
    def shapes(self) -> Mapping[str, Size]:
        """The shape of every stored tensor."""
        import torch

        return {name: torch.Size(shape) for name, shape in tensor_shapes(self.directory).items()}

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """The weight of the model that every stored tensor, by name, is or is a part of."""
        return {name: weight for name, (weight, _) in self._sources.items()}

    @cached_property
    def _sources(self) -> Mapping[str, tuple[str, bool]]:
        """Of every stored tensor, the weight that it becomes, and whether it is more than renamed for that."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        transforms = get_model_conversion_mapping(self.skeleton)
        renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        state, prefix = self.skeleton.state_dict(), self.skeleton.base_model_prefix
        sources: dict[str, tuple[str, bool]] = {}
        for name in sorted(self.shapes, key=dot_natural_key):
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
            sources[name] = renamed, pattern is not None
        # As after loading: only what was used is reverted by `revert_weight_conversion`.
        self.skeleton._weight_conversions = [transform for transform in transforms if transform.was_used()]
        return sources

    @cached_property
    def tensors(self) -> Mapping[str, list[str]]:
        """The stored tensors that every weight of the model is made of."""
        tensors: dict[str, list[str]] = {}
        for name, weight in self.weights.items():
            tensors.setdefault(weight, []).append(name)
        return tensors

    def check(self, weights: Iterable[str]) -> None:
        """Check that the files can hold other values of weights, before there are any; errors as for `store`."""
        state = self.skeleton.state_dict()
        for weight in sorted(weights):
            if weight not in state:
                raise self._error(weight)
            self.store(weight, state[weight])

    def store(self, weight: str, value: Tensor) -> dict[str, Tensor]:
        """Return a value of the shape of a weight as the files would hold it, by the names of stored tensors.

        Raises:
            UserError: the files do not hold the weight by itself.
        """
        names = self.tensors.get(weight, [])
        if not names:
            raise self._error(weight)
        if not self._sources[names[0]][1]:
            parts = {names[0]: value}
        else:
            from transformers.core_model_loading import revert_weight_conversion

            parts = revert_weight_conversion(self.skeleton, {weight: value})
        if parts.keys() != set(names):
            raise self._error(weight)
        return {name: self._turn(weight, name, part) for name, part in parts.items()}

    def _turn(self, weight: str, name: str, part: Tensor) -> Tensor:
        """Return a part in the orientation of a stored tensor, which transformers turns by its shape and not back."""
        shape = self.shapes[name]
        if part.shape != shape and part.ndim > 1 and part.transpose(-1, -2).shape == shape:
            part = part.transpose(-1, -2)
        if part.shape != shape:
            raise self._error(weight)
        return part.contiguous()

    def _error(self, weight: str) -> UserError:
        return UserError(
            f"{self.directory} stores {weight} in another form than it is computed with, so what is learned of it "
            "cannot be written as its files are; choose lora.targets that leave it out"
        )


def rewrite(
    layout: StoredLayout,
    target: Path,
    value: Callable[[str], Tensor | None],
    replace: Callable[[str, Tensor, Tensor], Tensor],
) -> None:
    """Write the files of a model with some weights replaced, in the same files and under the same names.

    No more than one file, and one weight of the model, is in memory at a time.

    Args:
        target: an existing directory, which also gets the model's configuration.
        value: returns what a weight of the model is replaced with, None where it stays.
        replace: takes the name of a weight, a stored tensor and the part of the value that belongs there, and returns
            what is stored.
    """
    for file in weight_files(layout.directory):
        _rewrite_file(layout, file, target, value, replace)
    for name in (INDEX, "config.json", "generation_config.json"):
        if (layout.directory / name).exists():
            shutil.copyfile(layout.directory / name, target / name)
    for code in layout.directory.glob("*.py") if is_code_trusted() else ():
        shutil.copyfile(code, target / code.name)


def _rewrite_file(
    layout: StoredLayout,
    file: Path,
    target: Path,
    value: Callable[[str], Tensor | None],
    replace: Callable[[str, Tensor, Tensor], Tensor],
) -> None:
    """Write one file; a tensor that outlived it would keep all of it mapped."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    with reading(file), safe_open(file, "pt") as stream:
        metadata = stream.metadata()
        current = ""
        parts: dict[str, Tensor] = {}
        for name in sorted(stream.offset_keys(), key=lambda name: layout.weights[name]):
            if layout.weights[name] != current:
                current = layout.weights[name]
                found = value(current)
                parts = {} if found is None else layout.store(current, found)
            stored = stream.get_tensor(name)
            tensors[name] = replace(current, stored, parts[name]) if parts else stored
    save_file(tensors, target / file.name, metadata)
