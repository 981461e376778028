"""Pictures of audits and comparisons, as PNG and SVG: data in, files out.

The background is solid and light, with a margin of its own, so that a picture reads the same on a white page, on a
dark one and in print. Series differ in marker or hatch as well as in colour (the palette of Okabe & Ito 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

Estimate = Mapping[str, Any]
"""`value`, `low` and `high`, and None for what is undefined."""

_INK, _PAPER, _GRID = "#222222", "#fcfcfa", "#d8d8d4"
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8c6d1f",
    "#56b4e9",
    "#7f7f7f",
    "#e69f00",
    "#4b3b8f",
    "#222222",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.facecolor": _PAPER,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": _PAPER,
    "font.size": 10,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "legend.framealpha": 1.0,
    "legend.facecolor": _PAPER,
    "legend.edgecolor": _GRID,
    "savefig.facecolor": _PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "carevl",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
}
_STYLED = mpl.rc_context(_STYLE)
_FEWEST = 10
"""Pairs below which a bin of a reliability diagram is not drawn."""


@_STYLED
def reliability(out: Path, curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Path]:
    """A panel per expert: confidence claimed against share right, before (`raw`) and after calibration.

    Bins of fewer than ten pairs are left out.

    Args:
        out: path without suffix.
        curves: by expert and `raw` or `calibrated`, bins with confidence, accuracy, low, high and n.
    """
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure, grid = _figure(3.1 * columns, 3.3 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    for axes, (name, lines) in zip(grid.flat, curves.items(), strict=False):
        axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=1, linestyle=":", label="as sure as right")
        for which, label, colour in (("raw", "before calibration", 1), ("calibrated", "after calibration", 0)):
            bins = [row for row in lines.get(which, ()) if row["n"] >= _FEWEST]
            x, y = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
            axes.errorbar(x, y, _whiskers(y, bins), label=label, **_line(colour), capsize=2)
        axes.set(title=name, xlim=(0.48, 1.02), ylim=(0.25, 1.03))
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("confidence claimed", fontsize=10)
    figure.supylabel("share right", fontsize=10)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return _save(figure, out)


@_STYLED
def coverage(out: Path, curve: Mapping[str, Any]) -> list[Path]:
    """Precision of the labels that are kept, with its lower bound, against the share kept; the threshold in use.

    Args:
        out: path without suffix.
        curve: `points` (threshold, coverage, precision, bound), `threshold`, `level`, `wanted`.
    """
    figure, grid = _figure(6.4, 4.2, 1, 1)
    axes, points = grid[0, 0], curve["points"]
    x = [point["coverage"] for point in points]
    axes.plot(x, [point["precision"] for point in points], label="precision on labelled pairs", color=_COLOURS[0])
    bound = [point["bound"] for point in points]
    axes.plot(x, bound, label=f"lower bound, {curve['level']:.0%}", color=_COLOURS[1], linestyle="--")
    chosen = [point for point in points if curve["threshold"] is not None and point["threshold"] >= curve["threshold"]]
    if chosen:
        last = chosen[-1]
        axes.axvline(last["coverage"], color=_INK, linewidth=1)
        axes.plot(last["coverage"], last["precision"], "o", color=_INK, label=f"threshold {curve['threshold']:.2f}")
    if curve["wanted"] is not None:
        axes.axhline(curve["wanted"], color=_COLOURS[2], linestyle=":", label=f"precision wanted, {curve['wanted']:g}")
    least = min([*bound[len(bound) // 10 :], curve["wanted"] or 1.0], default=0.5)
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, least - 0.05), 1.01))
    axes.set(xlabel="share of images whose pair is kept", ylabel="share of kept labels that are right")
    axes.legend(loc="lower left")
    return _save(figure, out)


@_STYLED
def agreement(
    out: Path, names: Sequence[str], same: Mapping[tuple[str, str], float], errors: Mapping[tuple[str, str], float]
) -> list[Path]:
    """Two matrices: how often experts name the same winner, and how far their errors go together.

    Args:
        out: path without suffix.
        same: share of the same winner for pairs of names, in either order; missing ones stay blank.
        errors: correlation of errors, likewise; empty without labels, and then not drawn.
    """
    wanted = [("same winner", same, "Blues", 0.5, 1.0)]
    if errors:
        wanted.append(("correlation of errors, kinds apart", errors, "Oranges", 0.0, 1.0))
    size = 1.4 + 0.75 * len(names)
    figure, grid = _figure(len(wanted) * (size + 0.4), size, 1, len(wanted))
    for axes, (title, values, colours, low, high) in zip(grid.flat, wanted, strict=True):
        shown = [name for name in names if any(name in pair for pair in values)]
        matrix = np.array([[values.get((a, b), values.get((b, a), np.nan)) for b in shown] for a in shown])
        axes.imshow(matrix, cmap=mpl.colormaps[colours].with_extremes(bad="#eeeeea"), vmin=low, vmax=high)
        for i, j in np.argwhere(~np.isnan(matrix)):
            dark = (matrix[i, j] - low) / (high - low) > 0.6
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=_PAPER if dark else _INK)
        axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(shown)), shown)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return _save(figure, out)


@_STYLED
def by_arm(out: Path, arms: Mapping[str, Estimate], *, title: str = "strict accuracy") -> list[Path]:
    """One row per arm, in the order given: value and interval.

    Args:
        out: path without suffix.
        arms: by name, `value`, `low` and `high`.
    """
    figure, grid = _figure(6.4, 1.1 + 0.42 * len(arms), 1, 1)
    axes = grid[0, 0]
    for place, (name, arm) in enumerate(arms.items()):
        colour = _COLOURS[1] if name == "carevl" else _COLOURS[0]
        if arm["value"] is None:
            axes.text(0.02, place, "not measured", va="center", transform=axes.get_yaxis_transform())
            continue
        axes.errorbar(arm["value"], place, xerr=_whiskers([arm["value"]], [arm]), fmt="o", color=colour, capsize=3)
        axes.annotate(f"{arm['value']:.2f}", (arm["value"], place), (0, 5), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set(ylim=(len(arms) - 0.5, -0.7), xlabel=title)
    axes.grid(visible=False, axis="y")
    return _save(figure, out)


@_STYLED
def by_kind(out: Path, arms: Mapping[str, Mapping[str, Estimate]], *, title: str = "strict accuracy") -> list[Path]:
    """A group per kind of question, a mark with its interval per arm.

    Args:
        out: path without suffix.
        arms: by arm and kind, `value`, `low` and `high`; a kind that an arm lacks is left out.
    """
    kinds = list(dict.fromkeys(kind for arm in arms.values() for kind in arm))
    figure, grid = _figure(max(6.4, 1.6 + 1.15 * len(kinds)), 4.4, 1, 1)
    axes = grid[0, 0]
    for k, (name, arm) in enumerate(arms.items()):
        there = [kind for kind in kinds if arm.get(kind, {}).get("value") is not None]
        x = [kinds.index(kind) + 0.7 * ((k + 0.5) / len(arms) - 0.5) for kind in there]
        y = [arm[kind]["value"] for kind in there]
        line = _line(k) | {"linestyle": "none"}
        axes.errorbar(x, y, _whiskers(y, [arm[kind] for kind in there]), label=name, **line, capsize=2)
    for edge in range(1, len(kinds)):
        axes.axvline(edge - 0.5, color=_GRID, linewidth=0.7)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(0, 1.02), ylabel=title)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=min(5, len(arms)), frameon=False)
    return _save(figure, out)


def _figure(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _line(k: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[k % len(_COLOURS)],
        "marker": _MARKERS[k % len(_MARKERS)],
        "markersize": 5,
        "linewidth": 1.3,
    }


def _whiskers(values: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Distances down and up, [2, n]; none where the interval is unknown."""
    low = [value if row["low"] is None else row["low"] for value, row in zip(values, rows, strict=True)]
    high = [value if row["high"] is None else row["high"] for value, row in zip(values, rows, strict=True)]
    return np.maximum(np.array([np.subtract(values, low), np.subtract(high, values)]), 0)


def _save(figure: Figure, out: Path) -> list[Path]:
    """Writes both formats; the same bytes for the same data."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    return files
