"""The whole tree of settings. `carevl settings` prints it with the description of every field."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from carevl.settings.base import HomePath, Strict
from carevl.settings.data import Benchmark, Data, Miniworld
from carevl.settings.models import Captioner, Expert, Judge
from carevl.settings.respond import Respond, Responder
from carevl.settings.router import LabelShares, LowRouter, RouterSettings
from carevl.settings.stages import Demonstrate, Sample, Select, Testify
from carevl.settings.training import Training


class Cluster(Strict):
    """Where Ray runs."""

    address: str | None = Field(None, description="Address of a running cluster; a local one is started when absent.")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; those of the machine when absent.")
    num_gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs of a local Ray; those of the machine when absent. More than there are: for rehearsals.",
    )
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        description="Memory of a GPU in GB (10^9 bytes), for `carevl plan` where torch does not see the run's GPUs.",
    )
    rehearse: bool = Field(
        False,
        description="A reserved GPU that torch does not see is a CPU (vllm: its CPU build; training: gloo), so that a "
        "run for GPUs is tried without them; `--rehearse` sets it. Nothing that it makes is a result.",
    )
    stall_hours: float = Field(
        6.0,
        gt=0,
        description="Hours in which no pool of a stage finishes a part, or workers of a training find no room, until "
        "the stage is given up; raise it where a part takes longer, or nodes are waited for.",
    )
    launcher: HomePath | None = Field(
        None, description="Cluster launcher file: nodes that Ray may still start by it count as there."
    )

    @property
    def stall_seconds(self) -> float:
        """`stall_hours` in seconds."""
        return 3600 * self.stall_hours


class Settings(Strict):
    """Everything that a run depends on."""

    seed: int = Field(0, description="Seed of every random choice.")
    items: int | None = Field(None, ge=1, description="Most rows to read of the sources without labels; all if absent.")
    max_error_fraction: float = Field(
        0.05, ge=0, le=1, description="Share of rows that may fail in a stage before the run stops."
    )
    data: Data = Field(description="What is read.")
    respond: Respond = Field(Respond(), description="Responses to the questions of sources that have none.")
    captioner: Captioner = Field(description="The model that describes every distinct image once.")
    experts: list[Expert] = Field(min_length=1, description="Text reward models; different kinds help most.")
    labels: LabelShares | None = Field(
        None, description="How labelled images are divided among what needs them; null: each serves router and choice."
    )
    router: RouterSettings = Field(RouterSettings(), description="How labels are trusted or not.")
    judge: Judge = Field(description="The vision-language model that becomes the judge.")
    demonstrate: Demonstrate = Field(Demonstrate(), description="Targets of phase 1.")
    sft: Training = Field(Training(), description="Phase 1: the judge imitates the targets.")
    testify: Testify = Field(Testify(), description="What the phase-1 judge sees in low-confidence items.")
    sample: Sample = Field(Sample(), description="Judgments of low-confidence items.")
    low_router: LowRouter = Field(LowRouter(), description="How low pairs are routed once experts read testimony.")
    select: Select = Field(Select(), description="Chosen and rejected judgments.")
    dpo: Training = Field(Training(learning_rate=5e-6), description="Phase 2: the judge prefers chosen to rejected.")
    rounds: int = Field(
        1,
        ge=1,
        description="Times that a judge is asked about low-confidence items and trained on what it says, each time the "
        "one before; labelled pairs of labels.choice say whether a round helped: one that did not is the last, and is "
        "not kept.",
    )
    benchmarks: list[Benchmark] = Field([], description="What base, phase-1 and phase-2 judge are evaluated on.")
    miniworld: Miniworld = Field(Miniworld(), description="The drawn world.")
    cluster: Cluster = Field(Cluster(), description="Where Ray runs.")

    @property
    def has_labels(self) -> bool:
        """Whether a source has labels."""
        return any(source.labels for source in self.data.sources)

    @property
    def caption_experts(self) -> list[Expert]:
        """The experts whose scores the first router reads."""
        return [expert for expert in self.experts if expert.reads != "testimony"]

    @property
    def testimony_experts(self) -> list[Expert]:
        """The experts whose scores the router of low pairs reads, if the judge testifies."""
        return [expert for expert in self.experts if expert.reads != "captions"]

    @property
    def testifies(self) -> bool:
        """Whether the phase-1 judge testifies, experts read it, and low pairs are routed again by what they say."""
        return self.has_phase2 and self.select.testimony_weight > 0

    @property
    def has_phase2(self) -> bool:
        """Whether phase 2 is trained: on testimony that no label guards only where the settings ask for it."""
        return self.has_labels or self.low_router.without_labels or not self.select.testimony_weight

    @field_validator("judge")
    @classmethod
    def _is_merged(cls, judge: Judge) -> Judge:
        if judge.adapter is not None:
            raise ValueError(
                "a run begins with whole weights; merge the adapter first, and give the merged judge as path"
            )
        return judge

    @field_validator("dpo")
    @classmethod
    def _has_no_injected_lines(cls, dpo: Training) -> Training:
        if dpo.injected_share:
            raise ValueError("injected_share is of phase 1, whose rows phase 2 replays; set sft.injected_share")
        return dpo

    @model_validator(mode="after")
    def _shows_all_images(self) -> Self:
        seeing: list[tuple[str, Responder | Expert | Judge]] = [
            ("judge", self.judge),
            *((f"respond.models.{n}", responder) for n, responder in enumerate(self.respond.models)),
            *((f"experts.{n}", expert) for n, expert in enumerate(self.experts) if expert.kind == "vlm"),
        ]
        for name, model in seeing:
            if model.max_images < self.data.max_images:
                raise ValueError(
                    f"data.max_images lets items have {self.data.max_images} images, and {name}.max_images shows "
                    f"{model.max_images} at most; raise this, or lower that"
                )
        if self.captioner.video == "one" and self.captioner.max_frames < self.data.max_images:
            raise ValueError(
                f"data.max_images lets videos have {self.data.max_images} frames, and captioner.max_frames shows "
                f"{self.captioner.max_frames} at once; raise this, or lower that"
            )
        return self

    @model_validator(mode="after")
    def _has_readers(self) -> Self:
        if not self.caption_experts:
            raise ValueError(
                "experts: none reads captions, by which the first labels are made; set reads of one to both"
            )
        if self.select.testimony_weight and not self.testimony_experts:
            raise ValueError(
                "select.testimony_weight: no expert reads testimony; set reads of one to both or testimony"
            )
        return self

    @model_validator(mode="after")
    def _has_labels_for_testimony(self) -> Self:
        if self.select.testimony_weight and self.has_labels and self.labels is None:
            raise ValueError(
                "select.testimony_weight needs labelled images that the first router has not seen; divide them with "
                "labels: {router: 0.45, low_router: 0.45, choice: 0.1}"
            )
        return self

    @model_validator(mode="after")
    def _can_choose_rounds(self) -> Self:
        if self.rounds == 1:
            return self
        if not self.has_labels:
            raise ValueError(
                f"rounds: {self.rounds}: labelled pairs say whether a round helped, and no source has labels; declare "
                "one with labels: true, or set rounds to 1"
            )
        if self.labels is not None and not self.labels.choice:
            raise ValueError(
                f"rounds: {self.rounds}: labelled pairs say whether a round helped, and labels.choice is 0; raise it, "
                "or set rounds to 1"
            )
        if self.dpo.spreads_weights:
            raise ValueError(
                f"rounds: {self.rounds}: judges are examined in judge.pool, whose actors hold the whole judge, and "
                "dpo.zero.stage: 3 says that none can; set it to 2, or rounds to 1"
            )
        return self
