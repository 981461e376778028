"""A judge's modules without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carevl.models.own_code import code_arguments


def load_skeleton(judge: Path, dtype: str | None = None) -> Any:
    """Return the judge's modules without weights, on the meta device.

    Args:
        dtype: of the weights that are not there; None: as the configuration says.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(judge, **code_arguments())
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, **code_arguments())
