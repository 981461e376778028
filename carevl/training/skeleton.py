"""A judge's modules without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_skeleton(judge: Path) -> Any:
    """Return the judge's modules without weights, on the meta device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(judge))
