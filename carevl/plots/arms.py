"""Pictures of arms side by side, as PNG and SVG: data in, files out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carevl.plots.style import COLOURS, GRID, STYLED, line_style, new_figure, save, whiskers

Estimate = Mapping[str, Any]
"""`value`, `low` and `high`, and None for what is undefined."""


@STYLED
def draw_arms(out: Path, arms: Mapping[str, Estimate], *, title: str = "strict accuracy") -> list[Path]:
    """Draw one row per arm, in the order given: value and interval.

    Args:
        out: path without suffix.
        arms: by name, `value`, `low` and `high`.
    """
    figure, grid = new_figure(6.4, 1.1 + 0.42 * len(arms), 1, 1)
    axes = grid[0, 0]
    for place, (name, arm) in enumerate(arms.items()):
        colour = COLOURS[1] if name == "carevl" else COLOURS[0]
        if arm["value"] is None:
            axes.text(0.02, place, "not measured", va="center", transform=axes.get_yaxis_transform())
            continue
        axes.errorbar(arm["value"], place, xerr=whiskers([arm["value"]], [arm]), fmt="o", color=colour, capsize=3)
        axes.annotate(f"{arm['value']:.2f}", (arm["value"], place), (0, 5), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set(ylim=(len(arms) - 0.5, -0.7), xlabel=title)
    axes.grid(visible=False, axis="y")
    return save(figure, out)


@STYLED
def draw_kinds(out: Path, arms: Mapping[str, Mapping[str, Estimate]], *, title: str = "strict accuracy") -> list[Path]:
    """Draw a group per kind of question, a mark with its interval per arm.

    Args:
        out: path without suffix.
        arms: by arm and kind, `value`, `low` and `high`; a kind that an arm lacks is left out.
    """
    kinds = list(dict.fromkeys(kind for arm in arms.values() for kind in arm))
    figure, grid = new_figure(max(6.4, 1.6 + 1.15 * len(kinds)), 4.4, 1, 1)
    axes = grid[0, 0]
    for k, (name, arm) in enumerate(arms.items()):
        measured = [kind for kind in kinds if arm.get(kind, {}).get("value") is not None]
        x = [kinds.index(kind) + 0.7 * ((k + 0.5) / len(arms) - 0.5) for kind in measured]
        y = [arm[kind]["value"] for kind in measured]
        line = line_style(k) | {"linestyle": "none"}
        axes.errorbar(x, y, whiskers(y, [arm[kind] for kind in measured]), label=name, **line, capsize=2)
    for edge in range(1, len(kinds)):
        axes.axvline(edge - 0.5, color=GRID, linewidth=0.7)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(0, 1.02), ylabel=title)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=min(5, len(arms)), frameon=False)
    return save(figure, out)
