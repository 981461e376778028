"""The base under adapters in 4 or 8 bits: which of its layers, and how bitsandbytes loads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.training.skeleton import load_skeleton
from carevl.training.trainable import find_quantizable

if TYPE_CHECKING:
    from carevl.settings.training import BaseBits


def check_bitsandbytes() -> None:
    """Refuse a base in fewer bits where what computes with them is not installed.

    Raises:
        UserError: as said.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise UserError("lora.base_bits needs the package bitsandbytes; install it, or set base_bits to null") from None
    del bitsandbytes


def keep_trainable(model: Any) -> None:
    """Keep the layers of a loaded base as gradients need them.

    On CPUs with products in bfloat16 bitsandbytes lays the weights of a model out anew when it is asked in evaluation
    mode, and nothing can be differentiated after that.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def loading_arguments(judge: Path, bits: BaseBits, dtype: str) -> dict[str, Any]:
    """Return what `from_pretrained` takes to load a judge whose language model has linear layers of so many bits.

    In 4 bits they are normal floats, whose scales are quantised too, as in QLoRA (arXiv 2305.14314, section 3); in 8
    bits integers by row and column, with outliers apart, as in LLM.int8 (arXiv 2208.07339). All else, the vision tower
    and the output matrix among it, has numbers of `dtype`.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    check_bitsandbytes()
    skeleton = load_skeleton(judge)
    quantized = set(find_quantizable(skeleton))
    linear = [name for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear)]
    # transformers reads these as expressions that match from the beginning of a name.
    whole = [f"{re.escape(name)}$" for name in linear if name not in quantized]
    if bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
    return {"quantization_config": config}
