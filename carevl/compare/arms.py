"""The arms of a comparison: each a pure change of the settings, and of the labels that the router gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from carevl.compare.labels import Labels
from carevl.errors import UserError, suggest
from carevl.settings.stages import Select
from carevl.stages.selection import RULES

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

RATES = (1.0, 0.5, 2.0, 0.25)
"""What the learning rates of both phases are multiplied by; an arm tries the first few on the first seed."""


@dataclass(frozen=True)
class Budget:
    """Tokens that CAREVL itself trained on with one seed, by phase; prompts and replay count."""

    phase1: int
    phase2: int

    @property
    def total(self) -> int:
        return self.phase1 + self.phase2


@dataclass(frozen=True)
class Arm:
    """A way to a judge.

    `judge` is what is evaluated: the base judge, the one that a phase made, or the experts reading captions. `tokens`
    says how much is trained on: as the settings have it (`own`), CAREVL's total in phase 1 (`total`), or what CAREVL
    took there in phase 2 (`phase2`) or in each phase (`phases`).
    """

    name: str
    about: str
    judge: Literal["base", "phase1", "phase2", "experts"]
    tokens: Literal["own", "total", "phase2", "phases"] = "own"
    labels: Labels | None = None
    """What becomes of the router's labels; they stay as they are when None."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changed settings, by their group: `{"select": {"min_gap": 0.2}}`."""

    oracle: bool = False
    """Whether the pairs of phase 2 are those of all low pairs, with their true labels."""

    @property
    def trained(self) -> bool:
        return self.judge in ("phase1", "phase2")

    def settings(self, settings: Settings, rate: float, budget: Budget | None) -> Settings:
        """Return the settings that this arm runs with.

        Args:
            rate: multiplies the learning rate of both phases.
            budget: of CAREVL with the same seed; needed unless `tokens` is `own`.
        """
        phases = {"sft": settings.sft, "dpo": settings.dpo}
        changed: dict[str, Any] = {
            name: phase.model_copy(update={"learning_rate": phase.learning_rate * rate})
            for name, phase in phases.items()
        }
        if self.tokens != "own":
            assert budget is not None
            shares = {"sft": budget.total if self.tokens == "total" else budget.phase1, "dpo": budget.phase2}
            for name in _LIMITED[self.tokens]:
                changed[name] = changed[name].model_copy(update={"tokens": max(1, shares[name])})
        if self.tokens == "total":  # the labelled pairs that guard CAREVL's second phase guard the only one
            dev_pairs = max(settings.sft.dev_pairs, settings.dpo.dev_pairs)
            changed["sft"] = changed["sft"].model_copy(update={"dev_pairs": dev_pairs})
        for name, fields in self.changes.items():
            changed[name] = changed.get(name, getattr(settings, name)).model_copy(update=fields)
        return settings.model_copy(update=changed)


_LIMITED = {"total": ("sft",), "phase2": ("dpo",), "phases": ("sft", "dpo")}
"""Phases whose tokens are given, by an arm's `tokens`."""


def _weights(**weights: float) -> dict[str, float]:
    """Return the weights of the registered rules, as fields of `select`: those that are not named have none."""
    fields = {rule.name: rule.setting for rule in RULES.values() if rule.setting in Select.model_fields}
    return {setting: weights.get(name, 0.0) for name, setting in fields.items()}


_WORDS = {
    **_weights(consistency=1.0, expert=0.5),
    "rules": {"carevl.compare.words:EvidenceWords": 1.0, "carevl.compare.words:AnswerWords": 3.0},
    "min_gap": 0.2,
    "same_evidence": True,
}
"""Settings of `select` that choose by words."""


OURS = Arm("carevl", "phase 1, then phase 2 on pairs chosen as the settings say", "phase2")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "the judge before any training", "base"),
        Arm("experts", "experts and captions as the judge, no vision-language model", "experts"),
        Arm("distillation", "phase 1 on every pair with the ensemble's label", "phase1", "total", Labels("every")),
        Arm(
            "soft_distillation",
            "phase 1 on every pair, its label drawn with the ensemble's probability",
            "phase1",
            "total",
            Labels("drawn"),
        ),
        Arm(
            "random_subset",
            "phase 1 on as many pairs as are high, taken at random",
            "phase1",
            "total",
            Labels("subset"),
        ),
        Arm("high_only", "phase 1 on high pairs, with all the tokens", "phase1", "total"),
        Arm("phase1", "ours before phase 2", "phase1"),
        OURS,
        Arm(
            "carevl_consistency",
            "pairs chosen by consistency alone",
            "phase2",
            "phase2",
            None,
            {"select": {**_weights(consistency=1.0), "rules": {}}},
        ),
        Arm(
            "carevl_experts",
            "pairs chosen by the experts alone",
            "phase2",
            "phase2",
            None,
            {"select": {**_weights(expert=1.0), "rules": {}}},
        ),
        Arm(
            "carevl_words",
            "pairs chosen by the words that responses share with the judge's evidence and answer",
            "phase2",
            "phase2",
            None,
            {"select": _WORDS, "sample": {"answers": True}},
        ),
        Arm(
            "oracle",
            "pairs chosen by the truth: the ceiling",
            "phase2",
            "phase2",
            None,
            {"select": {**_weights(testimony=1.0), "rules": {}}, "low_router": {"without_labels": True}},
            oracle=True,
        ),
    )
}


def chosen(names: Sequence[str]) -> list[Arm]:
    """Return the arms of these names, in the order of `ARMS`; all of them for no names.

    Raises:
        UserError: there is no such arm.
    """
    for name in names:
        if name not in ARMS:
            hint = suggest(name, ARMS, f"the arms are {', '.join(ARMS)}")
            raise UserError(f"compare: there is no arm {name!r}; {hint}")
    return [arm for arm in ARMS.values() if not names or arm.name in names]


def at_threshold(threshold: float) -> Arm:
    """CAREVL with the pairs high whose winner has at least this probability."""
    about = f"ours with pairs high from a probability of {threshold:.2f}"
    return Arm(f"carevl_at_{threshold:.2f}", about, "phase2", "phases", Labels("threshold", threshold))


def with_seed(settings: Settings, number: int) -> Settings:
    """Return the settings of the seed of this number: the first is the settings' own.

    Training, sampling and the draw of the labelled images that calibrate and test the router change; items do not.
    """
    changes: dict[str, Any] = {"seed": settings.seed + number}
    for name in ("sft", "dpo", "router", "low_router"):
        part = getattr(settings, name)
        changes[name] = part.model_copy(update={"seed": part.seed + number})
    return settings.model_copy(update=changes)
