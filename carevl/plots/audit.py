"""Pictures of an audit, as PNG and SVG: data in, files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from carevl.plots.style import COLOURS, INK, PAPER, STYLED, line_style, new_figure, save, whiskers

_FEWEST = 10
"""Pairs below which a bin of a reliability diagram is not drawn."""


@STYLED
def draw_reliability(out: Path, curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Path]:
    """Draw a panel per expert: confidence claimed against share right, before (`raw`) and after calibration.

    Bins of fewer than ten pairs are left out.

    Args:
        out: path without suffix.
        curves: by expert and `raw` or `calibrated`, bins with confidence, accuracy, low, high and n.
    """
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure, grid = new_figure(3.1 * columns, 3.3 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    for axes, (name, lines) in zip(grid.flat, curves.items(), strict=False):
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=":", label="as sure as right")
        for which, label, colour in (("raw", "before calibration", 1), ("calibrated", "after calibration", 0)):
            bins = [row for row in lines.get(which, ()) if row["n"] >= _FEWEST]
            x, y = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
            axes.errorbar(x, y, whiskers(y, bins), label=label, **line_style(colour), capsize=2)
        axes.set(title=name, xlim=(0.48, 1.02), ylim=(0.25, 1.03))
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("confidence claimed", fontsize=10)
    figure.supylabel("share right", fontsize=10)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return save(figure, out)


@STYLED
def draw_coverage(out: Path, curve: Mapping[str, Any]) -> list[Path]:
    """Draw the precision of the labels kept, with its lower bound, against the share kept, and the threshold in use.

    Args:
        out: path without suffix.
        curve: `points` (threshold, coverage, precision, bound), `threshold`, `level`, `wanted`.
    """
    figure, grid = new_figure(6.4, 4.2, 1, 1)
    axes, points = grid[0, 0], curve["points"]
    x = [point["coverage"] for point in points]
    axes.plot(x, [point["precision"] for point in points], label="precision on labelled pairs", color=COLOURS[0])
    bound = [point["bound"] for point in points]
    axes.plot(x, bound, label=f"lower bound, {curve['level']:.0%}", color=COLOURS[1], linestyle="--")
    chosen = [point for point in points if curve["threshold"] is not None and point["threshold"] >= curve["threshold"]]
    if chosen:
        last = chosen[-1]
        axes.axvline(last["coverage"], color=INK, linewidth=1)
        axes.plot(last["coverage"], last["precision"], "o", color=INK, label=f"threshold {curve['threshold']:.2f}")
    if curve["wanted"] is not None:
        axes.axhline(curve["wanted"], color=COLOURS[2], linestyle=":", label=f"precision wanted, {curve['wanted']:g}")
    least = min([*bound[len(bound) // 10 :], curve["wanted"] or 1.0], default=0.5)
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, least - 0.05), 1.01))
    axes.set(xlabel="share of images whose pair is kept", ylabel="share of kept labels that are right")
    axes.legend(loc="lower left")
    return save(figure, out)


@STYLED
def draw_agreement(
    out: Path, names: Sequence[str], same: Mapping[tuple[str, str], float], errors: Mapping[tuple[str, str], float]
) -> list[Path]:
    """Draw two matrices: how often experts name the same winner, and how far their errors go together.

    Args:
        out: path without suffix.
        same: share of the same winner for pairs of names, in either order; missing ones stay blank.
        errors: correlation of errors, likewise; empty without labels, and then not drawn.
    """
    matrices = [("same winner", same, "Blues", 0.5, 1.0)]
    if errors:
        matrices.append(("correlation of errors, kinds apart", errors, "Oranges", 0.0, 1.0))
    size = 1.4 + 0.75 * len(names)
    figure, grid = new_figure(len(matrices) * (size + 0.4), size, 1, len(matrices))
    for axes, (title, values, colours, low, high) in zip(grid.flat, matrices, strict=True):
        shown = [name for name in names if any(name in pair for pair in values)]
        matrix = np.array([[values.get((a, b), values.get((b, a), np.nan)) for b in shown] for a in shown])
        axes.imshow(matrix, cmap=mpl.colormaps[colours].with_extremes(bad="#eeeeea"), vmin=low, vmax=high)
        for i, j in np.argwhere(~np.isnan(matrix)):
            dark = (matrix[i, j] - low) / (high - low) > 0.6
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=PAPER if dark else INK)
        axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(shown)), shown)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return save(figure, out)
