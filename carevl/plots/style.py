"""The style of all pictures.

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

INK, PAPER, GRID = "#222222", "#fcfcfa", "#d8d8d4"
COLOURS = (
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
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.framealpha": 1.0,
    "legend.facecolor": PAPER,
    "legend.edgecolor": GRID,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "carevl",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
}
STYLED = mpl.rc_context(_STYLE)
"""Decorates a function that draws."""


def new_figure(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, Any]:
    """Open a figure of this size in inches; return it and its grid of axes, [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def line_style(k: int) -> dict[str, Any]:
    """Return colour, marker and width of the k-th series."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.3,
    }


def whiskers(values: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return distances down and up, [2, n]; 0 where the interval is unknown."""
    low = [value if row["low"] is None else row["low"] for value, row in zip(values, rows, strict=True)]
    high = [value if row["high"] is None else row["high"] for value, row in zip(values, rows, strict=True)]
    return np.maximum(np.array([np.subtract(values, low), np.subtract(high, values)]), 0)


def save(figure: Figure, out: Path) -> list[Path]:
    """Write PNG and SVG at `out`, a path without suffix; the same bytes for the same data."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    return files
