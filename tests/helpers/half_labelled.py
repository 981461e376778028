"""Settings of `mini` whose sources are one file, once with labels and once without."""

from __future__ import annotations

from pathlib import Path

from carevl.settings.loader import load_settings
from carevl.settings.tree import Settings


def load_half_labelled(rows: Path, *changes: str) -> Settings:
    """Load them, with changes; `rows` is that file."""
    sources = f"data.sources=[{{path: {rows}, labels: true}}, {{path: {rows}}}]"
    return load_settings("mini", ["benchmarks=[]", sources, *changes])
