"""TRL's trainers on the rows, the order and the settings of ours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import transformers as hf
from datasets import Dataset, disable_progress_bars
from PIL import Image
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # its imports are lazy

from carevl.models.prompts import Prompt, render_prompt
from carevl.settings.training import Phase, Training
from carevl.training.trainable import make_trainable

_UNSCALED = ("aya_vision", "cohere2_vision")
"""TRL scales their logits as the text model's configuration says; the models of transformers do not."""


def load(judge: Path, training: Training) -> Any:
    """The judge as TRL gets it, with the same weights frozen as in ours."""
    model = hf.AutoModelForImageTextToText.from_pretrained(judge, dtype=training.dtype, attn_implementation="sdpa")
    if model.config.model_type in _UNSCALED:
        model.config.text_config.logit_scale = 1.0
    return make_trainable(model, training)


def render(processor: Any, text: str) -> str:
    """A prompt as TRL has to get it: it reads no start token where the tokenizer writes it, not the template."""
    prompt, start = render_prompt(processor, Prompt(text)), processor.tokenizer.bos_token
    begins = processor.tokenizer("")["input_ids"] == [processor.tokenizer.bos_token_id]
    return start + prompt if begins and not prompt.startswith(start) else prompt


def make_trainer(
    phase: Phase, rows: pa.Table, order: Sequence[int], judge: Path, out: Path, training: Training, **arguments: Any
) -> Any:
    """A trainer that takes the rows in an order, once, `training.batch_size` at a time.

    Args:
        arguments: replace those that follow from `training`.
    """
    disable_progress_bars()
    processor = hf.AutoProcessor.from_pretrained(judge)
    columns = {"target": "completion"} if phase == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    listed = rows.to_pylist()
    data = Dataset.from_list(
        [
            {
                "images": [Image.open(io.BytesIO(listed[i]["image"])).convert("RGB")],
                "prompt": render(processor, listed[i]["prompt"]),
                **{theirs: listed[i][ours] + processor.tokenizer.eos_token for ours, theirs in columns.items()},
            }
            for i in order
        ]
    )
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": training.batch_size,
        "num_train_epochs": 1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": training.gradient_clip,
        "weight_decay": training.weight_decay,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": training.dtype == "bfloat16",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "router_aux_loss_coef": 0.0,
        "disable_tqdm": True,
        "seed": training.seed,
    }
    model = load(judge, training)
    if phase == "sft":
        settings = SFTConfig(**common | arguments)
        return SFTTrainer(model, args=settings, train_dataset=data, processing_class=processor)
    common |= {
        "beta": training.dpo.beta,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, training.dpo.nll_weight],
    }
    settings = DPOConfig(**common | arguments)
    reference = load(judge, training)
    return DPOTrainer(model, reference, args=settings, train_dataset=data, processing_class=processor)


def history(trainer: Any) -> list[dict[str, float]]:
    """What a trainer logged at every step."""
    return [facts for facts in trainer.state.log_history if "loss" in facts]
