"""The judge in training: loading, what of it is trained, and the export of what was learned."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carevl.errors import UserError
from carevl.models.device import device
from carevl.models.families import family_of
from carevl.models.flex_attention import FLEX
from carevl.models.packing import Packed
from carevl.models.tree_attention import TREES, branch_log_probabilities
from carevl.training.plain import Plain, plain_log_probabilities

if TYPE_CHECKING:
    from carevl.settings.training import Lora, Training


def log_probabilities(model: Any, batch: Packed | Plain) -> torch.Tensor:
    """Return the log-probability of every judgment of a batch given its prompt, float32 [M]; tokens count by weight."""
    if isinstance(batch, Packed):
        return branch_log_probabilities(model, batch)
    return plain_log_probabilities(model, batch)


class TrainedJudge(torch.nn.Module):
    """A vision-language model whose forward pass gives the log-probability of every branch, float32 [M]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Packed | Plain) -> torch.Tensor:
        return log_probabilities(self.model, batch)


def load_processor(judge: Path) -> Any:
    """Load a judge's processor.

    Raises:
        UserError: the directory has none, or one without images or without a chat template.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(judge)
    except (OSError, ValueError) as error:
        raise UserError(f"{judge} has no processor that loads: {' '.join(str(error).split())[:200]}") from None
    if not hasattr(processor, "image_processor"):
        raise UserError(f"{judge} has a tokenizer but no image processor; a judge needs its preprocessor_config.json")
    if not processor.chat_template:
        raise UserError(f"{judge} has no chat template; a judge needs its chat_template.jinja")
    return processor


def load_skeleton(judge: Path) -> Any:
    """Return the judge's modules without weights, on the meta device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(judge))


def load_judge(judge: Path, dtype: str) -> Any:
    """Load the judge with attention over trees in its language model: FlexAttention on a GPU, else block by block."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        judge, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
    )
    model.set_attn_implementation({"text_config": FLEX if device() == "cuda" else TREES})
    return model


def find_lora_modules(model: Any, lora: Lora, freeze_vision: bool) -> list[str]:
    """Return the full names of the linear modules that get adapters.

    Raises:
        UserError: a target matches none.
    """
    tower = f"{family_of(model).vision_tower}."
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and not (freeze_vision and name.startswith(tower))
    ]
    for target in lora.targets:
        if not any(_matches(name, target) for name in linear):
            raise UserError(
                f"lora.targets: {target} matches no linear module of the judge; near are {_near(target, linear)}"
            )
    return [name for name in linear if any(_matches(name, target) for target in lora.targets)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _near(target: str, names: Sequence[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    return ", ".join(difflib.get_close_matches(target.rsplit(".", 1)[-1], ends, 5, cutoff=0.3) or ends)


def make_trainable(model: Any, training: Training) -> Any:
    """Freeze what is not trained, and add adapters; return the PEFT wrapper, or the model itself without LoRA."""
    if training.lora is None:
        tower = f"{family_of(model).vision_tower}."
        for name, weight in model.named_parameters():
            weight.requires_grad = not (training.freeze_vision and name.startswith(tower))
        trained = model
    else:
        from peft import LoraConfig, get_peft_model

        lora = training.lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=find_lora_modules(model, lora, training.freeze_vision),
            task_type="CAUSAL_LM",
        )
        trained = get_peft_model(model, config)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # It makes the inputs of all embeddings require gradients, those of the vision tower too, which would then be
        # differentiated down to the pixels. Without reentrance nothing needs that. PEFT does the same to a model that
        # checkpoints already, and only the last hook can be removed: so adapters come first.
        model.disable_input_require_grads()
    return trained


def export(trained: Any, state: dict[str, torch.Tensor] | None, judge: Path, out: Path) -> None:
    """Write `out/judge`, a complete Hugging Face directory, and `out/adapter` when adapters were trained.

    The merged judge is made from the files of the adapter by stock PEFT. A directory appears whole or not at all.

    Args:
        trained: what `make_trainable` returned.
        state: its trained weights when they are spread over workers; None: it holds them itself.
        judge: the directory that the training began with.
    """
    from peft import PeftModel

    if not isinstance(trained, PeftModel):
        _write(out / "judge", lambda target: _save_judge(trained, judge, target, state))
        return
    _write(out / "adapter", lambda target: _save_adapter(trained, judge, target, state))
    base = load_judge(judge, "auto")
    merged = PeftModel.from_pretrained(base, out / "adapter").merge_and_unload(safe_merge=True)
    _write(out / "judge", lambda target: _save_judge(merged, judge, target, None))


def _save_judge(model: Any, judge: Path, target: Path, state: dict[str, torch.Tensor] | None) -> None:
    model.save_pretrained(target, state_dict=state)
    load_processor(judge).save_pretrained(target)


def _save_adapter(trained: Any, judge: Path, target: Path, state: dict[str, torch.Tensor] | None) -> None:
    trained.save_pretrained(target, state_dict=state)
    file = target / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(judge)}, indent=2))


def _write(directory: Path, save: Any) -> None:
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    save(unfinished)
    for weights in unfinished.glob("*.safetensors"):  # safetensors lets nobody but their owner read them
        shutil.copymode(next(unfinished.glob("*config.json")), weights)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
