"""Weights that are stored quantised: by which method, and a sentence where an engine does not run them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError
from carevl.models.row_errors import is_lost, is_out_of_memory

if TYPE_CHECKING:
    from carevl.settings.models import Model


def quantization_of(directory: str | Path) -> str | None:
    """Return the method by which a model's weights are quantised, such as `gptq`; None where they are whole."""
    try:
        stored = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):  # whoever loads the model says what is wrong with it
        return None
    return str(stored.get("quant_method")) if isinstance(stored, dict) else None


@contextmanager
def explain_quantization(engine: str, model: Model, directory: str | Path) -> Iterator[None]:
    """Say in a sentence that an engine does not run a model's quantised weights here.

    Every method has packages, kernels and errors of its own, so of a quantised model any error counts, other than one
    that is a sentence already, or that says that memory ran out or a card was lost.

    Raises:
        UserError: the block has raised such an error.
    """
    try:
        yield
    except Exception as error:
        method = quantization_of(directory) or model.engine_args.get("quantization")
        if method is None or isinstance(error, UserError) or is_out_of_memory(error) or is_lost(error):
            raise
        reason = " ".join(str(error).split())[:300]
        lacks = "install what it names, choose" if isinstance(error, ImportError) else "choose"
        other = "vllm" if engine == "transformers" else "transformers"
        raise UserError(
            f"{model.path}: {engine} does not run weights quantised by {method} here ({type(error).__name__}: "
            f"{reason}); {lacks} another format or whole weights, or use engine: {other}"
        ) from error
