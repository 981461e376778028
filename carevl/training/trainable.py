"""What of a judge is trained: which weights, and which of its layers get adapters."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carevl.errors import UserError, reading
from carevl.models.adapter_files import put_on
from carevl.models.parts import Part, split_parts

if TYPE_CHECKING:
    from carevl.settings.training import Lora, Training

TRAINED = "trained.json"
"""In a training's directory, what of the judge is trained."""
_BEFORE, TRAINED_ADAPTER = "before", "default"
"""Names that PEFT knows the adapters by: the one that a phase begins with, and the one that it trains."""
_PARTS: Mapping[str, tuple[Part, ...]] = {
    "language": ("language",),
    "language+projector": ("language", "projector"),
    "all": ("language", "projector", "vision"),
}


@dataclass(frozen=True)
class LoraModules:
    """What gets adapters, by full names: linear layers, and weights of experts that are fused, [experts, n, m]."""

    linear: list[str]
    experts: list[str]


def find_lora_modules(model: Any, training: Training) -> LoraModules:
    """Return what of a judge gets adapters: all linear layers of the parts that are trained, or the named ones of them.

    Subclasses of a linear layer are routers and other things that compute more than a product, and get none.

    Raises:
        UserError: a target matches nothing, there is nothing to adapt in a part, or dropout cannot be had.
    """
    lora = _lora(training)
    parts, trained = split_parts(model), _PARTS[training.train]
    linear = _find_linear(model, parts, trained)
    experts = [name for name, weight in model.named_parameters() if _is_fused(name, weight) and parts[name] in trained]
    _check_parts(model, training, {parts[name] for name in (*linear, *experts)})
    if lora.targets is not None:
        names = [*linear, *experts]
        for target in lora.targets:
            if not any(_matches(name, target) for name in names):
                raise UserError(
                    f"lora.targets: {target} matches no linear module of the judge; near are {_near(target, names)}"
                )
        linear = [name for name in linear if any(_matches(name, target) for target in lora.targets)]
        experts = [name for name in experts if any(_matches(name, target) for target in lora.targets)]
    if lora.dropout and (whole := [*experts, *_misread_by_peft(model, linear)]):
        raise UserError(f"lora.dropout: PEFT cannot drop inputs of {whole[0]}; set it to 0, or leave it out of targets")
    return LoraModules(linear, experts)


def find_quantizable(model: Any) -> list[str]:
    """Return the layers that may have fewer bits under adapters: the linear ones of the language model, by full names.

    Fused experts are no linear layers, and PEFT adapts some layers of mixtures by their weight: these stay as they are.
    """
    linear = _find_linear(model, split_parts(model), _PARTS["language"])
    misread = set(_misread_by_peft(model, linear))
    return [name for name in linear if name not in misread]


def _find_linear(model: Any, parts: Mapping[str, Part], among: Collection[Part]) -> list[str]:
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and parts.get(name) in among
    ]


def _check_parts(model: Any, training: Training, found: Collection[Part]) -> None:
    """Refuse a training of parts in which there is nothing to train."""
    trained = _PARTS[training.train]
    for part in (trained[0], trained[-1]):
        if part not in found:
            what = "weights" if training.lora is None else "linear layers"
            raise UserError(
                f"train: {training.train}: no {what} of {type(model).__name__} are known as its {part}; choose another "
                "value of train"
            )


def _lora(training: Training) -> Lora:
    assert training.lora is not None
    return training.lora


def _is_linear(module: torch.nn.Module) -> bool:
    # Those of bitsandbytes are linear layers with weights in 4 or 8 bits.
    quantized = type(module).__module__.partition(".")[0] == "bitsandbytes"
    return type(module) is torch.nn.Linear or (quantized and isinstance(module, torch.nn.Linear))


def _is_fused(name: str, weight: torch.Tensor) -> bool:
    return "experts" in name.split(".") and len(_shape(weight)) == 3


def _shape(weight: Any) -> torch.Size:
    """Return the shape of a weight, which ZeRO 3 may have spread."""
    return torch.Size(getattr(weight, "ds_shape", weight.shape))


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _near(target: str, names: Sequence[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    return ", ".join(difflib.get_close_matches(target.rsplit(".", 1)[-1], ends, 5, cutoff=0.3) or ends)


@dataclass(frozen=True)
class TrainedParts:
    """What of a judge is trained, counted.

    `lora_modules` are the linear layers and fused expert weights with adapters, `lora_parameters` the adapters'
    numbers; both are 0 without LoRA. Of the judge's own `tensors`, `trained` change or have adapters; `vision` and
    `projector` say how many of them these parts have, `vision_frozen` and `projector_frozen` how many of those stay.
    """

    train: str
    lora_modules: int
    lora_parameters: int
    tensors: int
    trained: int
    vision: int
    vision_frozen: int
    projector: int
    projector_frozen: int

    def line(self) -> str:
        """Return a sentence."""
        if self.lora_modules:
            what = f"{self.lora_modules} adapters of {self.lora_parameters:,} numbers"
        else:
            what = f"{self.trained} of {self.tensors} tensors"
        return (
            f"trains {what} ({self.train}); frozen: {self.vision_frozen} of {self.vision} tensors of the vision tower, "
            f"{self.projector_frozen} of {self.projector} of the projector"
        )

    @classmethod
    def read(cls, file: Path) -> TrainedParts | None:
        """Return what was written; None where an earlier version trained."""
        with reading(file):
            return cls(**json.loads(file.read_text())) if file.exists() else None

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1))


def changed_weights(model: Any, training: Training) -> set[str]:
    """Return the full names of the weights that a training changes or gives adapters.

    Raises:
        UserError: as for `find_lora_modules`.
    """
    if training.lora is not None:
        modules = find_lora_modules(model, training)
        return {*(f"{name}.weight" for name in modules.linear), *modules.experts}
    parts, trained = split_parts(model), _PARTS[training.train]
    changed = {name for name, _ in model.named_parameters() if parts[name] in trained}
    _check_parts(model, training, {parts[name] for name in changed})
    return changed


def describe_trained(model: Any, training: Training) -> TrainedParts:
    """Count what `make_trainable` would train of a model, which stays as it is; it may lie on the meta device.

    Raises:
        UserError: as for `find_lora_modules`.
    """
    parts, names = split_parts(model), [name for name, _ in model.named_parameters()]
    changed, modules, numbers = changed_weights(model, training), 0, 0
    if training.lora is not None:
        shapes = [_full_shape(model, name) for name in changed]
        modules = len(shapes)
        numbers = sum(training.lora.rank * shape[:-2].numel() * (shape[-1] + shape[-2]) for shape in shapes)
    vision, projector = ([name for name in names if parts[name] == part] for part in ("vision", "projector"))
    return TrainedParts(
        train=training.train,
        lora_modules=modules,
        lora_parameters=numbers,
        tensors=len(names),
        trained=len(changed),
        vision=len(vision),
        vision_frozen=sum(name not in changed for name in vision),
        projector=len(projector),
        projector_frozen=sum(name not in changed for name in projector),
    )


def _full_shape(model: Any, weight: str) -> torch.Size:
    """Return [..., n, m] of an adapted weight, as it is computed with: bitsandbytes packs it."""
    module = model.get_submodule(weight.rpartition(".")[0])
    if isinstance(module, torch.nn.Linear):
        return torch.Size((module.out_features, module.in_features))
    return _shape(model.get_parameter(weight))


def make_trainable(model: Any, training: Training, adapter: Path | None = None) -> Any:
    """Freeze what is not trained, and add adapters; return the PEFT wrapper, or the model itself without LoRA.

    Args:
        adapter: what the training begins with on top of the model; it stays as it is.
    """
    if training.lora is None:
        changed = changed_weights(model, training)
        for name, weight in model.named_parameters():
            weight.requires_grad = name in changed
        trained = model
    else:
        trained = _wrap(model, lora_config(model, training), adapter)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # It makes the inputs of all embeddings require gradients, those of the vision tower too, which would then be
        # differentiated down to the pixels. Without reentrance nothing needs that. PEFT does the same to a model that
        # checkpoints already, and only the last hook can be removed: so adapters come first.
        model.disable_input_require_grads()
    return trained


def lora_config(model: Any, training: Training) -> Any:
    """Return PEFT's configuration of the adapters of a training; errors as for `find_lora_modules`."""
    from peft import LoraConfig

    lora, modules = _lora(training), find_lora_modules(model, training)
    # A linear layer that PEFT would take for an expert is adapted as what it holds, its weight.
    misread = _misread_by_peft(model, modules.linear)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name in modules.linear if name not in misread],
        target_parameters=[*modules.experts, *(f"{name}.weight" for name in misread)] or None,
        task_type="CAUSAL_LM",
    )


def _misread_by_peft(model: Any, linear: Iterable[str]) -> list[str]:
    """Return the linear layers that PEFT would take for those of unfused experts in an old checkpoint.

    In mixtures of some families it reads every `gate_proj` so, those of dense layers and shared experts as well, and
    leaves these without an adapter.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def is_misread(leaf: str) -> bool:
        config = LoraConfig(target_modules=[f"layer.{leaf}"])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several weights that are fused
            return True
        return bool(config.target_parameters)

    leaves = {name: name.rpartition(".")[2] for name in linear}
    misread = {leaf for leaf in set(leaves.values()) if is_misread(leaf)}
    return [name for name, leaf in leaves.items() if leaf in misread]


def add_adapter(model: Any, adapter: Path) -> Any:
    """Put an adapter on a model, frozen and in the model's own format; return the PEFT wrapper."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(adapter))
    config.lora_dropout = 0.0  # it is part of what is trained on, as merged weights would be
    dtype = model.dtype
    wrapped = put_on(model, adapter, adapter_name=_BEFORE, config=config)
    for name, weight in wrapped.named_parameters():
        if f".{_BEFORE}." in name:  # PEFT computes an adapter in float32, training in the format of the model
            weight.data = weight.data.to(dtype)
    return wrapped


def _wrap(model: Any, config: Any, adapter: Path | None) -> Any:
    """Add the adapter that is trained, beside the one that the training begins with: both are active."""
    from peft import get_peft_model

    if adapter is None:
        return get_peft_model(model, config)
    wrapped = add_adapter(model, adapter)
    wrapped.add_adapter(TRAINED_ADAPTER, config)
    wrapped.base_model.set_adapter([_BEFORE, TRAINED_ADAPTER])
    for name, weight in wrapped.named_parameters():
        weight.requires_grad = f".{TRAINED_ADAPTER}." in name
    return wrapped
