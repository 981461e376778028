"""The parts of a vision-language model: language model, projector and vision tower, found by walking its modules.

Everything below works on a model whose weights lie on the meta device, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from carevl.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

Part = Literal["language", "projector", "vision"]
"""`language` is the decoder with its output matrix, `vision` everything outside it but the `projector`."""

PROJECTORS = frozenset(
    {
        "multi_modal_projector",  # LLaVA and what is built like it, Gemma 3, InternVL, Llama 3.2 and 4, Mistral 3, …
        "aligner",  # DeepSeek-VL
        "connector",  # Idefics 3, SmolVLM
        "merger",  # Qwen-VL, GLM-V, MiniCPM-V
        "deepstack_merger_list",  # Qwen3-VL, whose inner layers are projected, too
        "downsample",  # GLM-V: a convolution to the width of the language model, before its merger
        "embed_vision",  # Gemma 4
        "image_newline",  # LLaVA-NeXT, LLaVA-OneVision: a learned embedding, and no module
        "head_linear",  # Ovis 2 projects onto a vocabulary of images, which has embeddings
        "head_norm",
        "visual_embeddings_table",
    }
)
"""Last names of the modules and weights between vision tower and language model."""


def find_language_model(model: Any) -> Module:
    """Return the decoder, without the output matrix unless the family keeps that in it.

    Raises:
        UserError: the architecture does not tell its decoder from the rest.
    """
    decoder: Module | None = model.get_decoder()
    if decoder is None or decoder is model:
        raise UserError(f"{type(model).__name__} does not say which of its modules is the language model")
    return decoder


def weights_outside_language(model: Any) -> Iterator[Parameter]:
    """Yield the weights of vision tower and projector: all but those of the decoder and of the output matrix."""
    language = _language_modules(model)

    def walk(module: Module) -> Iterator[Parameter]:
        if module not in language:
            yield from module.parameters(recurse=False)
            for child in module.children():
                yield from walk(child)

    return walk(model)


def split_parts(model: Any) -> dict[str, Part]:
    """Return the part that every module and every weight belongs to, by its full name; tied weights have one name."""
    named: dict[str, Part] = {}
    language = _language_modules(model)

    def walk(module: Module, prefix: str, part: Part) -> None:
        for name, _ in module.named_parameters(recurse=False):
            named[prefix + name] = "projector" if part == "vision" and name in PROJECTORS else part
        for name, child in module.named_children():
            inner: Part = "language" if child in language else part
            if inner == "vision" and name in PROJECTORS:
                inner = "projector"
            named[prefix + name] = inner
            walk(child, f"{prefix}{name}.", inner)

    walk(model, "", "vision")
    return named


def _language_modules(model: Any) -> tuple[Module, Module]:
    return find_language_model(model), model.get_output_embeddings()
