"""The picture of a training: loss, and in dpo the margin and the rewards of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carevl.plots.style import COLOURS, STYLED, new_figure

_LINES = ("-", "--", ":")
_PANELS = (
    ("nats per token or pair", {"loss": "loss", "held_out": "held out"}),
    ("share", {"dev_accuracy": "labelled pairs right in both orders"}),
    ("margin of rewards", {"rewards/margins": "chosen minus rejected"}),
    ("reward", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
)


@STYLED
def draw_training_curve(file: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Draw the curve of a training as a PNG.

    Args:
        curve: the facts of every step.
    """
    panels = [(unit, series) for unit, series in _PANELS if any(name in facts for facts in curve for name in series)]
    figure, grid = new_figure(6.4, 1.2 + 2.2 * len(panels), len(panels), 1, sharex=True)
    for axes, (unit, series) in zip(grid[:, 0], panels, strict=True):
        for (name, label), colour, line in zip(series.items(), COLOURS, _LINES, strict=False):
            points = [(facts["step"], _value(facts[name])) for facts in curve if name in facts]
            if points:
                mark = "o" if len(points) < 20 else None
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=mark, label=label)
        axes.set_ylabel(unit)
        axes.legend()
    grid[-1, 0].set_xlabel("step")
    figure.savefig(file, dpi=150)


def _value(fact: Any) -> float:
    return float(fact["loss"] if isinstance(fact, Mapping) else fact)
