"""The arguments of a vLLM engine: a pure function of a model's settings, its configuration and the card."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError, suggest
from carevl.models.engines.base import Runner
from carevl.models.engines.card import CONTEXT, GIB, Card
from carevl.models.footprint import Footprint
from carevl.models.locate import loading_arguments
from carevl.models.stored_weights import indexed_files, stored_dtype

if TYPE_CHECKING:
    from carevl.settings.models import Model

_SHARED = 0.9
"""Share of a card that engines with a fraction of it divide among them; the rest is for what they do not count."""
_SHARED_TOKENS, _SHARED_SEQUENCES = 8192, 256
"""Tokens of a step and sequences in flight of an engine that shares a card: what its activations are counted for."""
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose state is the keys and values of every token."""
_TOWER = 2 * GIB
"""Bytes for the activations of a vision tower."""

_OWN = {
    "model": "path",
    "tokenizer": "path",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel",
    "enable_lora": "adapter",
}
"""Arguments of vLLM that other settings are there for."""


@dataclass(frozen=True)
class ModelShape:
    """Facts of a model that memory is counted by.

    `dtype`: what it is computed in. `weight_bytes`: of its weights in that format; None where its directory lacks them.
    `longest`: tokens that it reads at most, None when it does not say. `cuts_tiles`: whether its processor does.
    `stateful_layers`: kinds of its layers that are no attention over all tokens, such as convolutions.
    """

    dtype: str
    weight_bytes: int | None
    longest: int | None
    layers: int = 0
    kv_heads: int = 0
    head_size: int = 0
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    has_images: bool = False
    cuts_tiles: bool = False
    stateful_layers: tuple[str, ...] = ()

    @property
    def value_bytes(self) -> int:
        """Bytes of a number in `dtype`."""
        return 4 if self.dtype == "float32" else 2

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.value_bytes

    def activation_bytes(self, tokens: int, sequences: int, runner: str) -> int:
        """Return what one step of so many tokens takes: the widest layer, and logits with their copies in sampling."""
        widest = tokens * (2 * self.intermediate + 6 * self.hidden) * self.value_bytes
        logits = sequences * self.vocabulary * 4 * 3 if runner == "generate" else 0
        return widest + logits + (_TOWER if self.has_images else 0)


def read_shape(path: str, dtype: str, loading: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a model's configuration and files tell; nothing is loaded.

    Args:
        path: its directory.
        dtype: as in the settings; left to itself, vLLM would compute float32 weights in float16, and scores would
            move in their third digit.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(path, **loading)
    text = config.get_text_config()
    # Without a word of it, vLLM would compute float32 weights in 16 bits.
    stored = str(config.dtype or getattr(text, "dtype", None) or stored_dtype(Path(path))).removeprefix("torch.")
    stored = stored if stored in ("float32", "bfloat16", "float16") else ""
    computed = stored or "auto" if dtype == "auto" else dtype
    heads = getattr(text, "num_attention_heads", 0) or 0
    hidden = getattr(text, "hidden_size", 0) or 0
    return ModelShape(
        dtype=computed,
        weight_bytes=_weight_bytes(Path(path), (stored == "float32") - (computed == "float32")),
        longest=getattr(text, "max_position_embeddings", None),
        layers=getattr(text, "num_hidden_layers", 0) or 0,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or (hidden // heads if heads else 0),
        hidden=hidden,
        intermediate=getattr(text, "intermediate_size", 0) or 0,
        vocabulary=getattr(text, "vocab_size", 0) or 0,
        has_images=text is not config,
        stateful_layers=tuple(sorted({*(getattr(text, "layer_types", None) or ())} - _ATTENTION)),
    )


def _weight_bytes(directory: Path, halvings: int) -> int | None:
    files = indexed_files(directory) or sorted(directory.glob("*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        return None
    return int(sum(file.stat().st_size for file in files) * 0.5**halvings)


def card_share(model: Model) -> float:
    """Return the share of a card that an actor of the model's pool has to itself."""
    return min(model.pool.num_gpus, 1.0) or 1.0


def vllm_arguments(model: Model, path: str, shape: ModelShape, card: Card | None, runner: Runner) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`.

    On a card: CUDA graphs, and vLLM's own sequences in flight and memory unless the settings say otherwise. Engines
    that share a card get their cache in bytes, computed from share, weights and a reserve, because vLLM would measure
    what its neighbours do as well. On a CPU: no graphs, and prompts in one piece, because vLLM cannot set back a seeded
    CPU generator after part of a prompt.

    Args:
        path: the model's directory.
        card: None on a CPU.

    Raises:
        UserError: `engine_args` has an argument that another setting is there for; or the share of a card is too small.
    """
    length = min(model.max_model_len, shape.longest or model.max_model_len)
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": shape.dtype,
        "max_model_len": length,
        "enforce_eager": card is None,
        "disable_log_stats": True,
        **loading_arguments(model),
    }
    sequences = model.max_num_seqs
    if card is None:
        sequences = sequences or model.pool.batch_size
    if runner == "pooling":
        arguments["runner"] = "pooling"
    else:
        if shape.has_images:
            arguments["limit_mm_per_prompt"] = {"image": getattr(model, "max_images", 1), "video": 0}
        if card is None:
            arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, length)}
            if shape.stateful_layers:  # their cache of prefixes wants prompts in parts
                arguments["enable_prefix_caching"] = False
    if shape.cuts_tiles and model.max_image_tiles is not None:
        arguments["mm_processor_kwargs"] = {"max_patches": model.max_image_tiles}
    if model.tensor_parallel > 1:
        # In processes of its own: inside an actor it would else ask Ray for GPUs that the actor has reserved already.
        arguments |= {"tensor_parallel_size": model.tensor_parallel, "distributed_executor_backend": "mp"}
    if card is not None and card_share(model) < 1:
        sequences = sequences or _SHARED_SEQUENCES
        arguments |= _share_arguments(model, length, sequences, shape, card, runner)
    if sequences is not None:
        arguments["max_num_seqs"] = sequences
    return arguments | _user_arguments(model)


def _share_arguments(
    model: Model, length: int, sequences: int, shape: ModelShape, card: Card, runner: str
) -> dict[str, Any]:
    share, tokens = card_share(model), max(_SHARED_TOKENS, length)
    arguments: dict[str, Any] = {"gpu_memory_utilization": _SHARED * share, "max_num_batched_tokens": tokens}
    if shape.weight_bytes is None or {"kv_cache_memory_bytes", "quantization"} & model.engine_args.keys():
        return arguments
    whole = int(_SHARED * share * card.total_bytes)
    activations = shape.activation_bytes(tokens, sequences, runner)
    left = whole - shape.weight_bytes - activations - CONTEXT
    least = shape.cache_bytes * length
    if left < max(least, 1):
        raise UserError(
            f"{model.path}: {share:g} of a {card.name} is {whole / GIB:.1f} GiB; weights take "
            f"{shape.weight_bytes / GIB:.1f}, activations and CUDA {(activations + CONTEXT) / GIB:.1f}, which leaves "
            f"{left / GIB:.1f} for the cache, and one text of {length} tokens takes {least / GIB:.1f}; raise "
            "pool.num_gpus, lower max_model_len, or set engine_args.kv_cache_memory_bytes"
        )
    return arguments | {"kv_cache_memory_bytes": left}


def vllm_footprint(model: Model, shape: ModelShape, runner: Runner) -> Footprint | None:
    """Return the least that an engine takes of each of its cards: room in its cache for one text of full length.

    None where the model's directory lacks its weights.
    """
    if shape.weight_bytes is None:
        return None
    length = min(model.max_model_len, shape.longest or model.max_model_len)
    activations = shape.activation_bytes(max(_SHARED_TOKENS, length), model.max_num_seqs or _SHARED_SEQUENCES, runner)
    parts = model.tensor_parallel
    return Footprint(shape.weight_bytes // parts, activations=activations, cache=shape.cache_bytes * length // parts)


def needed_bytes(arguments: Mapping[str, Any], card: Card) -> int:
    """Return the free memory that vLLM wants to see on a card when it starts with these arguments."""
    return int(arguments.get("gpu_memory_utilization", 0.92) * card.total_bytes)


def _user_arguments(model: Model) -> dict[str, Any]:
    for name in model.engine_args:
        if name in _OWN:
            raise UserError(f"{model.path}: engine_args has {name}; set {_OWN[name]} in its place")
    return dict(model.engine_args)


def check_engine_args(model: Model) -> None:
    """Check the names in `engine_args` against those that the installed vLLM has; without one, nothing is refused.

    Raises:
        UserError: vLLM has no such argument, or another setting is there for it.
    """
    given, names = _user_arguments(model), engine_argument_names() if model.engine_args else None
    if names is None:
        return
    for name in given:
        if name not in names:
            hint = suggest(name, names, "see the engine arguments in vLLM's documentation")
            raise UserError(f"{model.path}: engine_args has {name}, which vLLM does not know; {hint}")


@cache
def engine_argument_names() -> frozenset[str] | None:
    """Return the fields of vLLM's `EngineArgs`; None where vLLM is not installed.

    They are read from its source, because importing it takes seconds, and a build that fits the machine.
    """
    package = find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        return None
    source = Path(package.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    fields = next(node.body for node in classes if node.name == "EngineArgs")
    return frozenset(
        field.target.id for field in fields if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
