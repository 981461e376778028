"""The picture of a training: loss, and in dpo the margin and the rewards of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_INK, _PAPER, _GRID = "#222222", "#fcfcfa", "#d8d8d4"
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_STYLES = ("-", "--", ":")
_PANELS = (
    ("nats per token or pair", {"loss": "loss", "held_out": "held out"}),
    ("share", {"dev_accuracy": "labelled pairs right in both orders"}),
    ("margin of rewards", {"rewards/margins": "chosen minus rejected"}),
    ("reward", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
)


def draw(file: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG on a light ground of its own, so that it reads on a white and on a dark page.

    Args:
        curve: the facts of every step.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [(unit, series) for unit, series in _PANELS if any(name in facts for facts in curve for name in series)]
    style: dict[Any, Any] = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), _PAPER),
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.grid": True,
        "grid.color": _GRID,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 1.2 + 2.2 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)
        for axes, (unit, series) in zip(grid[:, 0], panels, strict=True):
            for (name, label), colour, line in zip(series.items(), _COLOURS, _STYLES, strict=False):
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
