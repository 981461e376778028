"""Settings of a training phase."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from carevl.settings.base import Strict

Tracker = Literal["none", "tensorboard", "mlflow", "wandb"]
"""Where steps are logged beside the run directory."""

Packing = Literal["shared", "plain"]
"""`shared` computes a prompt once for all its judgments; `plain` computes each with a prompt of its own."""

Phase = Literal["sft", "dpo"]
"""`sft` teaches judgments to imitate; `dpo` prefers chosen to rejected judgments."""


TrainedPart = Literal["language", "language+projector", "all"]
"""Which parts of a judge are trained or get adapters; `all` is with the vision tower."""

BaseBits = Literal[4, 8]
"""Bits of a number of a quantised base."""

NOT_LEARNED = {"workers", "checkpoint_steps", "keep_checkpoints", "tracker"}
"""Fields of `Training` that do not change what is learned."""

_LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The linear layers of all language models that an earlier version trains; its settings hold them where null is now."""


class Lora(Strict):
    """Which modules get low-rank adapters."""

    rank: int = Field(64, ge=1, description="Rank of the adapters.")
    alpha: float = Field(128.0, gt=0, description="Scale of the adapters, divided by their rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs that is dropped in training.")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="Modules by the end of their name, of the parts that are trained; null: all linear layers, and the "
        "fused experts of a mixture.",
    )
    base_bits: BaseBits | None = Field(
        None,
        description="Bits of the language model's linear layers under adapters, by bitsandbytes, so that a small card "
        "holds a larger judge; null: those of dtype.",
    )


class Dpo(Strict):
    """The objective of phase 2."""

    beta: float = Field(0.1, gt=0, description="How strongly the judge is held to the reference.")
    nll_weight: float = Field(1.0, ge=0, description="Weight of the mean token loss on chosen judgments.")
    replay_share: float = Field(1.0, ge=0, description="Phase-1 rows in every step, relative to its pairs.")
    replay_weight: float = Field(1.0, ge=0, description="Weight of the mean token loss on those rows.")


class Zero(Strict):
    """DeepSpeed's ZeRO: what is spread over the workers."""

    stage: Literal[0, 1, 2, 3] = Field(
        0, description="0 spreads nothing, 1 the optimiser, 2 also gradients, 3 also weights."
    )
    offload_optimizer: bool = Field(False, description="Keep the optimiser in CPU memory; needs stage 1 or more.")


class Workers(Strict):
    """The training workers that Ray starts."""

    count: int = Field(1, ge=1, description="Workers; the data of a step are the same for any number.")
    num_cpus: float = Field(1.0, gt=0, description="CPUs that each worker reserves.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that each worker reserves.")
    resources: dict[str, float] = Field({}, description="Custom Ray resources that each worker reserves.")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="How Ray places the workers on the nodes."
    )
    max_failures: int = Field(3, ge=-1, description="Lost workers that are replaced before the run stops; -1: any.")


class Training(Strict):
    """How a judge is trained in one phase.

    Starting points for the learning rate: 1e-4 (sft) and 5e-6 (dpo) with LoRA, 2e-6 and 5e-7 for all weights.
    """

    learning_rate: float = Field(1e-4, gt=0, description="Peak; LoRA wants more than ten times that of all weights.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after warm-up.")
    warmup: float = Field(0.03, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of a step's gradient.")
    epochs: int = Field(1, ge=1, description="Times that every item is seen.")
    tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens to train on, in whole steps: items come again, or not all of them; null: as epochs say.",
    )
    batch_size: int = Field(
        32, ge=1, description="Items of a step, over all workers; all targets of a prompt are one item."
    )
    batch_tokens: int = Field(
        8192, ge=1, description="Tokens that a worker computes at a time, padding included; a longer item is an error."
    )
    packing: Packing = Field(
        "shared",
        description="shared: a prompt is computed once for all its judgments; plain: once for each. Judges that cannot "
        "share (linear attention, convolutions) are computed plain in any case.",
    )
    seed: int = Field(0, description="Seed of order, adapters and dropout.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Format of the numbers.")
    lora: Lora | None = Field(Lora(), description="Adapters; all weights are trained when null.")
    train: TrainedPart = Field(
        "language",
        description="What is trained or gets adapters: language, language+projector, or all, with the vision tower.",
    )
    gradient_checkpointing: bool = Field(False, description="Save memory by computing activations twice.")
    verdict_weight: float = Field(
        1.0, gt=0, description="How often the tokens of a target's verdict count, those of its evidence counting once."
    )
    injected_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Of phase 1: share of the items whose pairs get a line that asks for the verdict, at the end of "
        "the better response as often as of the other; their targets stay.",
    )
    dpo: Dpo = Field(Dpo(), description="The objective of phase 2.")
    zero: Zero = Field(Zero(), description="DeepSpeed's ZeRO.")
    workers: Workers = Field(Workers(), description="The training workers that Ray starts.")
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the items, by image, that is held out: the checkpoint that is best there is exported.",
    )
    dev_pairs: int = Field(
        0,
        ge=0,
        description="Labelled pairs, from sources with labels, whose verdicts in both orders say which checkpoint is "
        "best; 0: what is held out says it.",
    )
    patience: int = Field(0, ge=0, description="Checkpoints without a new best after which training ends; 0: never.")
    checkpoint_steps: int = Field(50, ge=1, description="Steps between checkpoints, and looks at how good they are.")
    keep_checkpoints: int = Field(2, ge=1, description="Latest checkpoints that are kept.")
    tracker: Tracker = Field("none", description="Where steps are also told, through accelerate's tracker classes.")

    @model_validator(mode="before")
    @classmethod
    def _read_freeze_vision(cls, values: Any) -> Any:
        """Read settings of an earlier version, which has `freeze_vision` and writes out the targets of every judge."""
        if not isinstance(values, dict) or "freeze_vision" not in values:
            return values
        frozen = values["freeze_vision"]
        if "train" in values or not isinstance(frozen, bool):
            raise ValueError("freeze_vision has become train: write train: language for true, train: all for false")
        rest = {name: value for name, value in values.items() if name != "freeze_vision"}
        lora = rest.get("lora")
        if frozen and isinstance(lora, dict) and lora.get("targets") == _LLAMA_TARGETS:
            rest["lora"] = {**lora, "targets": None}
        return {**rest, "train": "language" if frozen else "all"}

    @model_validator(mode="after")
    def _check_base_bits(self) -> Training:
        if self.base_bits and self.spreads_weights:
            raise ValueError("zero.stage: 3 spreads no weights of fewer bits; set it to 2, or lora.base_bits to null")
        return self

    @property
    def spreads_weights(self) -> bool:
        """Whether no worker holds the whole judge."""
        return self.zero.stage == 3

    @property
    def base_bits(self) -> BaseBits | None:
        """Bits of the base's linear layers under adapters; None: they are numbers of `dtype`."""
        return self.lora.base_bits if self.lora else None

    def learned(self) -> dict[str, Any]:
        """Return what the curve depends on, as JSON; without `NOT_LEARNED`.

        What earlier versions could set has their names, so that what they trained is found again.
        """
        # An earlier version added gradients up in the format of the numbers.
        accumulated = {"gradients": "float32"} if self.dtype == "bfloat16" else {}
        facts = {**self.model_dump(mode="json", exclude=NOT_LEARNED), **accumulated}
        if not self.injected_share:
            del facts["injected_share"]
        if self.train != "language+projector":
            facts["freeze_vision"] = facts.pop("train") == "language"
        if self.lora is not None and self.lora.base_bits is None:
            del facts["lora"]["base_bits"]
        if self.lora is not None and self.train == "language":
            # Those models have no other linear layers: the list stands for null, and for itself in another order.
            named = self.lora.targets == _LLAMA_TARGETS
            facts["lora"]["targets"] = sorted(_LLAMA_TARGETS) if named else self.lora.targets or _LLAMA_TARGETS
        return facts
