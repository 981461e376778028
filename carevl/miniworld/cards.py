"""Model cards of the shipped models, written from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carevl.miniworld.experts import EXPERTS
from carevl.miniworld.models import CAPTION_PROMPT
from carevl.miniworld.quality import rows
from carevl.miniworld.scenes import WORLD_VERSION

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: {task}
tags: [carevl, miniworld]
---
# miniworld {name}

{about}

Made by `carevl miniworld train` from random weights, on drawn scenes of miniworld version {version} alone (the
`weights` pool, which shares no scene with any split that `carevl miniworld draw` writes). It exists to try
reward-modelling pipelines against known truth, and knows nothing of real photographs.

## Measured by `carevl miniworld quality`, on unseen scenes

| figure | value (95 % interval) |
|---|---|
{table}
"""


def _abouts() -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Yield (directory, branch of the figures, pipeline tag, what the model is)."""
    yield (
        "captioner",
        ("captioner",),
        "image-text-to-text",
        f"A Qwen2-VL of 1.8 M parameters. Asked `{CAPTION_PROMPT}`, it names colour and shape of every object with "
        "their number, and leaves out positions and sizes by design.",
    )
    yield (
        "judge",
        ("judge",),
        "image-text-to-text",
        "A Qwen2-VL of 1.8 M parameters: the base judge that CAREVL starts from. It sees well and answers questions; "
        "comparing two responses with what it sees is a skill it was hardly taught.",
    )
    for name, expert in EXPERTS.items():
        yield (
            f"expert-{name}",
            ("experts", name),
            "text-classification",
            f"A text reward model ({expert.architecture}, one output) that reads a caption, a question and a response. "
            f"Its flaw, built in on purpose: {expert.flaw}.",
        )


def write_cards(weights: Path, figures: dict[str, Any]) -> None:
    """Write a README.md into every model directory; `figures` is what `quality.measure` returned."""
    for directory, branch, task, about in _abouts():
        lines = "\n".join(f"| {name} | {text} |" for name, text in rows(figures, *branch))
        card = _CARD.format(task=task, name=directory, about=about, version=WORLD_VERSION, table=lines)
        (weights / directory / "README.md").write_text(card)
