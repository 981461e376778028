"""LoRA adapters as tensors: composed into one, and merged into a base once, in float32, a file of weights at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.stored_weights import INDEX, indexed_files

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROUNDING = "rounding.json"
"""In a training's directory, what the format of the merged weights lost."""
ROUGH = 0.1
"""Share of a change that may be lost to the format of the merged weights before it is warned of."""
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PEFT stores it: its configuration, and A [r, n] and B [m, r] of every module."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, directory: Path) -> Adapter:
        """Read an adapter's directory."""
        from safetensors.torch import load_file

        return cls(json.loads((directory / CONFIG).read_text()), load_file(directory / WEIGHTS))

    def write(self, directory: Path) -> None:
        """Write a directory that PEFT and vLLM load."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), directory / WEIGHTS, metadata={"format": "pt"})
        (directory / CONFIG).write_text(json.dumps(dict(self.config), indent=2))
        shutil.copymode(directory / CONFIG, directory / WEIGHTS)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return float(self.config["lora_alpha"] / self.config["r"])

    @property
    def modules(self) -> list[str]:
        """Full names of the modules that it changes, in the model that it is put on."""
        return sorted(name.removeprefix(_PREFIX).removesuffix(_A) for name in self.tensors if name.endswith(_A))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A [r, n] and B [m, r] of a module, float32."""
        return self.tensors[f"{_PREFIX}{module}{_A}"].float(), self.tensors[f"{_PREFIX}{module}{_B}"].float()


def compose(adapters: Sequence[Adapter], base: str) -> Adapter:
    """Return one adapter of `base` that adds what several do together.

    Each adds s B A to a weight, s = alpha / rank; side by side, [s1 B1, s2 B2] [A1; A2] adds the sum exactly. A single
    one stays as it is, but for the base that it names.
    """
    if len(adapters) == 1:
        return replace(adapters[0], config={**adapters[0].config, "base_model_name_or_path": base})
    import torch

    tensors: dict[str, Tensor] = {}
    for module in sorted({module for adapter in adapters for module in adapter.modules}):
        like = next(adapter.factors(module) for adapter in adapters if module in adapter.modules)
        parts = [_parts(adapter, module, like) for adapter in adapters]
        tensors[f"{_PREFIX}{module}{_A}"] = torch.cat([a for a, _ in parts], dim=0).contiguous()
        tensors[f"{_PREFIX}{module}{_B}"] = torch.cat([b for _, b in parts], dim=1).contiguous()
    rank = sum(adapter.config["r"] for adapter in adapters)
    config = {
        **adapters[-1].config,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name for adapter in adapters for name in adapter.config["target_modules"]}),
        "base_model_name_or_path": base,
    }
    return Adapter(config, tensors)


def _parts(adapter: Adapter, module: str, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A and scaled B of a module; zeros of the adapter's rank where it leaves the module alone."""
    if module not in adapter.modules:
        (a, b), rank = like, adapter.config["r"]
        return a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
    a, b = adapter.factors(module)
    return a, b * adapter.scale


@dataclass(frozen=True)
class Rounding:
    """What the format of merged weights loses of a change: |merged - (W + d)| / |d|, in Frobenius' norm.

    `overall` is over all adapted weights, `largest` that of `weight`, which loses most; `dtype` is the format.
    """

    overall: float
    largest: float
    weight: str
    dtype: str

    @classmethod
    def read(cls, file: Path) -> Rounding | None:
        """Return what was measured; None where nothing was merged, or an earlier version did it."""
        return cls(**json.loads(file.read_text())) if file.exists() else None

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1))

    def line(self) -> str:
        """Return a sentence, with a warning where much is lost."""
        return describe_rounding(asdict(self))


def describe_rounding(rounding: Mapping[str, Any]) -> str:
    """Return the fields of a `Rounding` as a sentence, with a warning where much is lost."""
    text = (
        f"merging into {rounding['dtype']} lost {rounding['overall']:.2g} of what was learned "
        f"({rounding['largest']:.2g} in {rounding['weight']})"
    )
    if rounding["overall"] <= ROUGH:
        return text
    return f"warning: {text}: the merged judge is not the one that was trained; use judge.serve: adapter"


def merge(base: Path, adapter: Adapter, target: Path) -> Rounding:
    """Write the weights of `base` with an adapter added in float32, in the base's own files and formats.

    No more than one file of weights is in memory at a time.

    Raises:
        UserError: a weight that the adapter changes is stored in another form than the model computes with.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    names, errors, changes = _stored_names(base, adapter), _Norms(), _Norms()
    largest, worst, dtype = 0.0, "", ""
    for file in weight_files(base):
        tensors: dict[str, Tensor] = {}
        with safe_open(file, "pt") as stream:
            metadata = stream.metadata()
            for name in stream.offset_keys():
                stored = stream.get_tensor(name)
                if name in names:
                    a, b = adapter.factors(names[name])
                    change = (b @ a) * adapter.scale
                    exact = stored.float() + change
                    stored = exact.to(stored.dtype)
                    error, size = errors.add(stored.float() - exact), changes.add(change)
                    if size and error / size >= largest:
                        largest, worst = error / size, names[name]
                    dtype = str(stored.dtype).removeprefix("torch.")
                tensors[name] = stored
        save_file(tensors, target / file.name, metadata)
    for name in (INDEX, "config.json", "generation_config.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)
    return Rounding(errors.total / changes.total if changes.total else 0.0, largest, worst, dtype)


class _Norms:
    """Frobenius' norm of matrices, and of all of them together."""

    def __init__(self) -> None:
        self.squares = 0.0

    def add(self, matrix: Tensor) -> float:
        norm = float(matrix.norm())
        self.squares += norm**2
        return norm

    @property
    def total(self) -> float:
        return math.sqrt(self.squares)


def weight_files(model: Path) -> list[Path]:
    """Return the files that hold a model's weights: those of its index, or the only one."""
    return indexed_files(model) or [model / "model.safetensors"]


def _stored_names(base: Path, adapter: Adapter) -> dict[str, str]:
    """Return the names under which the base's files hold the weights of adapted modules, to those modules.

    Raises:
        UserError: the files do not hold one of them.
    """
    modules = set(adapter.modules)
    names = {
        stored: name.removesuffix(".weight")
        for stored, name in _model_names(base)
        if name.endswith(".weight") and name.removesuffix(".weight") in modules
    }
    if missing := modules - set(names.values()):
        raise UserError(
            f"{base} stores {sorted(missing)[0]} in another form than it is computed with, so an adapter of it cannot "
            "be merged into its files; choose lora.targets that leave it out"
        )
    return names


def _model_names(base: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of every stored weight, and the one that it has in the model: transformers renames some."""
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    from carevl.training.judge import load_skeleton

    skeleton = load_skeleton(base)
    transforms = get_model_conversion_mapping(skeleton)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    state = skeleton.state_dict()
    stored: list[str] = []
    for file in weight_files(base):
        with safe_open(file, "pt") as stream:
            stored += stream.keys()
    for name in sorted(stored, key=dot_natural_key):
        renamed, _ = rename_source_key(name, renamings, converters, skeleton.base_model_prefix, state)
        yield name, renamed
