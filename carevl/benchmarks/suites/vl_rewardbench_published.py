"""Published VL-RewardBench scores, and whether each row agrees with itself.

A row's overall score is the mean of its group scores weighted by the groups' sizes, its macro score their unweighted
mean. All five are published to 0.1, so rounding explains a gap of up to 0.1 between a published average and the one
recomputed from the rounded group scores, and no more. The official scorer leaves rows without a verdict out of the
groups, which moves the weights: a flagged row may be right, but cannot be recomputed from what was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GROUP_SIZES: Mapping[str, int] = {"general": 183, "hallucination": 749, "reasoning": 318}
TOLERANCE = 0.1
_FLOAT_ERROR = 1e-9


@dataclass(frozen=True)
class Published:
    """Scores in percent as published."""

    judge: str
    general: float
    hallucination: float
    reasoning: float
    overall: float
    macro: float


@dataclass(frozen=True)
class Check:
    """A published row with its two averages recomputed (percent, not rounded)."""

    published: Published
    overall: float
    macro: float
    consistent: bool
    """Both recomputed averages lie within 0.1 of the published ones."""


VL_REWARDBENCH: tuple[Published, ...] = (
    Published("GPT-4o", 49.1, 67.6, 70.5, 65.8, 62.4),
    Published("Claude 3.5", 43.4, 55.0, 62.3, 55.3, 53.6),
    Published("Llama-3.2-90B", 42.6, 57.3, 61.7, 56.2, 53.9),
    Published("Qwen2-VL-7B", 31.6, 19.1, 51.1, 28.3, 33.9),
    Published("LLaVA-Critic-7B", 47.4, 38.5, 53.8, 43.7, 46.6),
    Published("IXC-2.5-Reward", 84.7, 62.5, 62.9, 65.8, 70.0),
    Published("Skywork-VL-Reward", 66.0, 80.0, 61.0, 73.1, 69.0),
)


def check(row: Published, sizes: Mapping[str, int] = GROUP_SIZES) -> Check:
    """Return the row with overall and macro recomputed from its group scores and these group sizes."""
    scores = {"general": row.general, "hallucination": row.hallucination, "reasoning": row.reasoning}
    overall = sum(scores[group] * sizes[group] for group in scores) / sum(sizes[group] for group in scores)
    macro = sum(scores.values()) / len(scores)
    gap = max(abs(overall - row.overall), abs(macro - row.macro))
    return Check(row, overall, macro, consistent=gap <= TOLERANCE + _FLOAT_ERROR)


def published_table() -> list[tuple[str, ...]]:
    """Return the scores in percent, header first, with a note at rows that contradict themselves."""
    table: list[tuple[str, ...]] = [("published, %", "overall", "macro", "general", "hallucination", "reasoning", "")]
    for row in VL_REWARDBENCH:
        checked = check(row)
        note = (
            "" if checked.consistent else f"inconsistent: its groups give {checked.overall:.1f} and {checked.macro:.1f}"
        )
        scores = (row.overall, row.macro, row.general, row.hallucination, row.reasoning)
        table.append((row.judge, *map(str, scores), note))
    return table
