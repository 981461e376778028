"""LoRA adapters as tensors: composed into one, and merged into a base once, in float32, a file of weights at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError, reading
from carevl.training.stored_layout import StoredLayout, rewrite

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROUNDING = "rounding.json"
"""In a training's directory, what the format of the merged weights lost."""
ROUGH = 0.1
"""Share of a change that may be lost to the format of the merged weights before it is warned of."""
_PREFIX, _A, _B, _INNER = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".base_layer"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PEFT stores it: its configuration, and two factors of every module or weight that it changes.

    Of a linear layer these are A [r, n] and B [m, r]; of fused weights of E experts A [E * r, n], expert by expert,
    and B [m, r * E], with the experts of a rank side by side. Where a module has several adapted weights, PEFT wraps it
    several times, and the names of the inner ones have as many times `.base_layer`.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, directory: Path) -> Adapter:
        """Read an adapter's directory."""
        from safetensors.torch import load_file

        with reading(directory / CONFIG):
            config = json.loads((directory / CONFIG).read_text())
        with reading(directory / WEIGHTS):
            return cls(config, load_file(directory / WEIGHTS))

    def write(self, directory: Path) -> None:
        """Write a directory that PEFT and vLLM load."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), directory / WEIGHTS, metadata={"format": "pt"})
        config = dict(self.config)
        if isinstance(modules := config.get("target_modules"), list):
            config["target_modules"] = sorted(modules)  # PEFT writes a set, in another order in every process
        (directory / CONFIG).write_text(json.dumps(config, indent=2))
        shutil.copymode(directory / CONFIG, directory / WEIGHTS)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return float(self.config["lora_alpha"] / self.config["r"])

    @property
    def modules(self) -> list[str]:
        """Full names of what it changes, in the model that it is put on, as PEFT writes them."""
        return sorted(name.removeprefix(_PREFIX).removesuffix(_A) for name in self.tensors if name.endswith(_A))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A [E, r, n] and B [E, m, r] of a module, float32; E is 1 for a linear layer."""
        a, b = self.tensors[f"{_PREFIX}{module}{_A}"].float(), self.tensors[f"{_PREFIX}{module}{_B}"].float()
        rank = self.config["r"]
        return a.view(-1, rank, a.shape[1]), b.view(b.shape[0], rank, -1).permute(2, 0, 1)

    def weights(self, model: Any) -> dict[str, str]:
        """Return the full names of the weights that it changes, to those of `modules`.

        Args:
            model: that it is put on, without adapters; it may lie on the meta device.

        Raises:
            UserError: the model has no such module.
        """
        wanted = tuple(self.config.get("target_parameters") or ())
        return dict(_find_weight(model, module, wanted) for module in self.modules)

    def change(self, module: str, turned: bool = False) -> Tensor:
        """Return what it adds to a weight, float32 [m, n], or [E, m, n] for fused experts.

        Args:
            turned: the weight of the experts is [E, n, m].
        """
        a, b = self.factors(module)
        change = b @ a * self.scale
        return change.transpose(-1, -2) if turned else change[0] if len(change) == 1 else change


def _find_weight(model: Any, module: str, parameters: tuple[str, ...]) -> tuple[str, str]:
    """Return the full name of the weight that a module of an adapter changes, and the module."""
    wrapped = module
    while wrapped.endswith(_INNER):
        wrapped = wrapped.removesuffix(_INNER)
    depth = (len(module) - len(wrapped)) // len(_INNER)
    try:
        names = [f"{wrapped}.{name}" for name, _ in model.get_submodule(wrapped).named_parameters(recurse=False)]
    except AttributeError:
        raise UserError(
            f"the adapter changes {module}, which is no module of the base; it is of another model"
        ) from None
    # PEFT wraps in the order of the module's weights, so that the innermost is the first.
    targeted = [name for name in names if any(name == one or name.endswith(f".{one}") for one in parameters)]
    weight = targeted[len(targeted) - 1 - depth] if targeted else f"{wrapped}.weight"
    return weight, module


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
        a, b = torch.cat([a for a, _ in parts], dim=1), torch.cat([b for _, b in parts], dim=2)
        tensors[f"{_PREFIX}{module}{_A}"] = a.flatten(0, 1).contiguous()
        tensors[f"{_PREFIX}{module}{_B}"] = b.permute(1, 2, 0).flatten(1).contiguous()
    rank = sum(adapter.config["r"] for adapter in adapters)
    config = {
        **adapters[-1].config,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": _union(adapters, "target_modules") or [],
        "target_parameters": _union(adapters, "target_parameters"),
        "base_model_name_or_path": base,
    }
    return Adapter(config, tensors)


def _union(adapters: Sequence[Adapter], field: str) -> list[str] | None:
    return sorted({name for adapter in adapters for name in adapter.config.get(field) or ()}) or None


def _parts(adapter: Adapter, module: str, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A and scaled B of a module; zeros of the adapter's rank where it leaves the module alone."""
    if module not in adapter.modules:
        (a, b), rank = like, adapter.config["r"]
        return a.new_zeros(len(a), rank, a.shape[2]), b.new_zeros(len(b), b.shape[1], rank)
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
        with reading(file):
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
    layout, errors, changes = StoredLayout(base), _Norms(), _Norms()
    modules = adapter.weights(layout.skeleton)
    layout.check(modules)
    largest, worst, dtype = 0.0, "", ""

    def change(weight: str) -> Tensor | None:
        if weight not in modules:
            return None
        holder = layout.skeleton.get_submodule(weight.rpartition(".")[0])
        # As PEFT: where a module does not say so, weights are [experts, out, in].
        return adapter.change(modules[weight], turned=getattr(holder, "is_transposed", False))

    def add(weight: str, stored: Tensor, part: Tensor) -> Tensor:
        nonlocal largest, worst, dtype
        exact = stored.float() + part
        rounded = exact.to(stored.dtype)
        error, size = errors.add(rounded.float() - exact), changes.add(part)
        if size and error / size >= largest:
            largest, worst = error / size, weight.removesuffix(".weight")
        dtype = str(stored.dtype).removeprefix("torch.")
        return rounded

    rewrite(layout, target, change, add)
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
