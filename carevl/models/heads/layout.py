"""What the files of a reward model hold, told from configuration and names of tensors before any weight is loaded.

Every stored tensor is taken by the body or by the head, or the model is refused with the names of what is left over:
transformers would drop those, and draw what is missing at random, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.models.heads import FoundHead, HeadSettings, HeadTensors, find_head
from carevl.models.heads.outputs import check_output
from carevl.models.judge_files import quiet_transformers
from carevl.models.own_code import explain_refusal
from carevl.models.row_errors import first_line
from carevl.models.stored_weights import tensor_shapes

_LANGUAGE_HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "output.weight")
"""Names of what a language model predicts words with, which no score needs; `language_model.` may stand before them."""


@dataclass(frozen=True)
class RewardLayout:
    """A reward model as its files describe it.

    Attributes:
        model_class: what loads it; its own code where that is trusted.
        config: with as many labels as its head has outputs.
        head: None where the model's own code gives the outputs: bidirectional models, and code of its own.
        is_remote: whether the class comes with the model.
        outside: names of the tensors that its body does not take.
        is_whole: whether the class itself takes every tensor, so that its forward pass gives the outputs as well.
    """

    model_class: Any
    config: Any
    head: FoundHead | None
    is_remote: bool
    is_whole: bool
    outside: frozenset[str]

    @property
    def quantization(self) -> str | None:
        """The method by which its weights are quantised, such as `gptq`; None where they are whole."""
        stored = getattr(self.config, "quantization_config", None)
        return None if stored is None else str(_as_mapping(stored).get("quant_method"))

    @property
    def outputs(self) -> int | None:
        """Numbers that its head gives; None where only its own code knows."""
        if self.head is not None:
            return self.head.outputs
        return None if self.is_remote else int(self.config.num_labels)

    def __str__(self) -> str:
        """Return a few words for people."""
        return f"that of its own class {self.model_class.__name__}" if self.head is None else str(self.head)


def read_layout(
    directory: str | Path, settings: HeadSettings | None = None, *, trust_remote_code: bool = False
) -> RewardLayout:
    """Return what a reward model's directory holds.

    Args:
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        UserError: no head is there, or none that is known; tensors are left over, or lacking; or it has several outputs
            and the settings name none.
    """
    settings = settings or HeadSettings()
    try:
        layout = _read(Path(directory), settings, trust_remote_code)
        if layout.outputs is not None:
            check_output(layout.outputs, settings.output)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    return layout


def _read(directory: Path, settings: HeadSettings, trusted: bool) -> RewardLayout:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        refusal = explain_refusal("it", error, "its trust_remote_code")
        raise UserError(refusal or f"its configuration is refused by transformers: {first_line(error)}") from None
    model_class, is_remote = _find_class(directory, config, trusted)
    stored = tensor_shapes(directory)
    if not stored:
        raise UserError("it has no safetensors weights; convert them with save_pretrained")
    skeleton, missing, mismatched, unexpected = _load_names(model_class, config, stored)
    own = {name for name in skeleton.state_dict() if not _in_body(skeleton, name)}
    if lacking := sorted((missing | mismatched.keys()) - own):
        raise UserError(f"it lacks weights of its body, such as {lacking[0]}: it is not a whole model")
    not_taken = {name: stored[name] for name in stored if name in unexpected | own}
    outside = {name: shape for name, shape in not_taken.items() if not _is_language_head(name, shape)}
    if own and not is_remote and any(not name.startswith("score.") for name in own):
        _check_own(own, outside)
        config.num_labels = next((shape[0] for shape in mismatched.values()), config.num_labels)
        return RewardLayout(model_class, config, None, False, True, frozenset(not_taken))
    tensors = HeadTensors(outside, config.get_text_config().hidden_size, config, settings.activation)
    found = find_head(tensors)
    is_whole = bool(own) and own == outside.keys()
    if found is not None or not (is_remote and is_whole):
        _check_found(found, outside, stored)
    if found is not None and not is_remote:
        config.num_labels = found.outputs
    return RewardLayout(model_class, config, found, is_remote, is_whole, frozenset(not_taken))


def _find_class(directory: Path, config: Any, trusted: bool) -> tuple[Any, bool]:
    """Return the class that loads a model, and whether it is code that comes with it."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    own = getattr(config, "auto_map", None) or {}
    for name in ("AutoModelForSequenceClassification", "AutoModel"):
        if trusted and name in own:
            return get_class_from_dynamic_module(own[name], str(directory)), True
    for mapping in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)], False
    raise UserError(f"transformers loads no {config.model_type} that gives scores")


def _load_names(
    model_class: Any, config: Any, stored: Mapping[str, Sequence[int]]
) -> tuple[Any, set[str], dict[str, Sequence[int]], set[str]]:
    """Load tensors without numbers; return the model, and which are missing, of another shape (theirs), or not taken.

    Of a quantised model, whose tensors have other names and shapes, those that lie outside its body are not taken.
    """
    import torch

    if getattr(config, "quantization_config", None) is not None:
        with torch.device("meta"):
            skeleton = model_class(config)
        return skeleton, set(), {}, {name for name in stored if not _in_body(skeleton, name)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    try:
        with quiet_transformers():
            skeleton, loaded = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # whatever an architecture makes of a configuration that it cannot build
        raise UserError(f"its model cannot be built: {first_line(error)}") from None
    mismatched = {name: shape for name, shape, _ in loaded["mismatched_keys"]}
    return skeleton, set(loaded["missing_keys"]), mismatched, set(loaded["unexpected_keys"])


def _as_mapping(quantization: Any) -> Mapping[str, Any]:
    return quantization if isinstance(quantization, Mapping) else quantization.to_dict()


def _in_body(model: Any, name: str) -> bool:
    return model.base_model is model or name.startswith(f"{model.base_model_prefix}.")


def _is_language_head(name: str, shape: Sequence[int]) -> bool:
    return name.removeprefix("language_model.") in _LANGUAGE_HEADS and shape[0] > 1


def _check_own(own: set[str], outside: Mapping[str, Sequence[int]]) -> None:
    if lacking := sorted(own - outside.keys()):
        raise UserError(_lacking(lacking, outside))
    if left := sorted(outside.keys() - own):
        raise UserError(_left_over(left, outside))


def _check_found(
    found: FoundHead | None, outside: Mapping[str, Sequence[int]], stored: Mapping[str, Sequence[int]]
) -> None:
    if not outside:
        raise UserError(_lacking(["score.weight"], {name: stored[name] for name in _LANGUAGE_HEADS if name in stored}))
    if left := sorted(outside.keys() - {*(found.tensors if found else ())}):
        raise UserError(_left_over(left, outside))


def _lacking(names: Iterable[str], instead: Mapping[str, Sequence[int]]) -> str:
    others = f"; it has {', '.join(sorted(instead))} instead" if instead else ""
    return f"it has no weights for its head {', '.join(names)}{others}; a score needs one"


def _left_over(names: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> str:
    listed = ", ".join(f"{name} {list(shapes[name])}" for name in names)
    return (
        f"neither its body nor a head that is known here takes {listed}; a score without them would be another one. "
        "Wrap the model in a Python class (kind: python), or trust its own code (trust_remote_code)"
    )
