"""Scoring with vLLM: its own classifiers, or our heads on the states of a body that it runs.

vLLM's classifiers read a linear `score`. For every other head it loads the body alone, as for embeddings, and gives the
state of each text's last token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.conversations import Conversation, Encoded, encode, too_long
from carevl.models.engines.parity import SAMPLE, Reference, check_parity, find_reference
from carevl.models.engines.vllm_body import body_arguments
from carevl.models.engines.vllm_start import shut_down, start_engine
from carevl.models.engines.vllm_window import nothing_left
from carevl.models.heads import HeadSettings
from carevl.models.heads.ending import Ending
from carevl.models.heads.outputs import choose_score
from carevl.models.heads.reader import HeadReader
from carevl.models.locate import loading_arguments, model_directory
from carevl.models.quantization import explain_quantization
from carevl.models.row_errors import SomeRowsError, first_line, is_lost, is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from carevl.models.heads.layout import RewardLayout
    from carevl.settings.models import Model

_log = logging.getLogger(__name__)

_CLASSIFIER = {"score.weight", "score.bias"}
"""Tensors of the heads that vLLM's own classifiers read."""


def is_own_classifier(layout: RewardLayout) -> bool:
    """Tell whether vLLM has a class of its own for a model with its head."""
    if layout.head is None:
        return True
    names = layout.config.architectures or ()
    is_classifier = any(name.endswith("ForSequenceClassification") for name in names)
    return layout.head.kind == "linear" and {*layout.head.tensors} <= _CLASSIFIER and is_classifier


def unread_reason(model: Model, layout: RewardLayout) -> str | None:
    """Return why vLLM cannot run a reward model, as half a sentence; None where nothing is known against it."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.models import ModelRegistry

    if layout.quantization is not None and layout.quantization not in QUANTIZATION_METHODS:
        return f"vllm does not read weights quantised by {layout.quantization}"
    if layout.is_remote and layout.head is None:
        return f"its head is that of its own code ({layout.model_class.__name__}), which vllm does not run"
    if is_own_classifier(layout):
        return None
    if model.tensor_parallel > 1:
        return f"its head, {layout}, is not one that vllm reads on several GPUs"
    body = _body_class(layout)
    if body is None or body not in ModelRegistry.get_supported_archs():
        return f"its head, {layout}, is not one that vllm reads, and vllm has no class for its body alone"
    return None


def _body_class(layout: RewardLayout) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = type(layout.config)
    return MODEL_FOR_CAUSAL_LM_MAPPING[kind].__name__ if kind in MODEL_FOR_CAUSAL_LM_MAPPING else None


def _find_reference(model: Model, layout: RewardLayout, card: str) -> Reference | None:
    """Return the scores of transformers; None, and a line in the log, where it does not run quantised weights here."""
    try:
        return find_reference(model, card)
    except Exception as error:  # of any kind: every method of quantisation has packages and kernels of its own
        if layout.quantization is None or is_out_of_memory(error) or is_lost(error):
            raise
        _log.warning(
            "%s: scores of vllm are not held against those of transformers, which does not run it (%s)",
            model.path,
            first_line(error),
        )
        return None


class VllmScorer:
    """A text reward model; the same calls as `RewardScorer`.

    Args:
        layout: what its files hold; `unread_reason` has nothing against it.
        card: name of what it is computed on.
        parity_tolerance: largest difference from the scores of `RewardScorer` on a small sample, as a share of the
            largest of them; None: not checked.

    Raises:
        UserError: the scores of the sample differ by more; the settings do not suit the model or the card; or vLLM
            lacks a kernel here for its quantised weights.
    """

    def __init__(self, model: Model, layout: RewardLayout, card: str, parity_tolerance: float | None = None) -> None:
        from transformers import AutoTokenizer

        from carevl.models.reward_head import load_head

        # The reference goes first, so that the engine finds the memory free.
        reference = None if parity_tolerance is None else _find_reference(model, layout, card)
        directory = model_directory(model)
        self.path, self.layout, self.output = model.path, layout, HeadSettings.of(model).output
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, **loading_arguments(model))
        self.ending = Ending() if layout.head is None else Ending.of(layout.config)
        self.head: HeadReader | None = None
        if is_own_classifier(layout):
            overrides = model.engine_args.get("hf_overrides", {}) | {"num_labels": layout.outputs}
            self.engine = start_engine(model, "pooling", hf_overrides=overrides)
        else:
            assert layout.head is not None
            self.head = HeadReader(layout.head, load_head(directory, layout.head), self.tokenizer)
            self.engine = start_engine(model, "pooling", **body_arguments(_body_class(layout) or "", layout.outside))
        self.limit: int = self.engine.llm_engine.vllm_config.model_config.max_model_len
        if parity_tolerance is None:
            _log.warning("%s: scores of vllm are not held against those of transformers", model.path)
        if reference is not None and parity_tolerance is not None:
            check_parity(model.path, reference, self.score(SAMPLE), parity_tolerance)
        elif layout.quantization is not None:
            # Kernels for quantised weights are looked up at the first text: those that are not there are missed now.
            with explain_quantization("vllm", model, directory):
                self.score(SAMPLE)

    def score(self, conversations: Sequence[Conversation | Encoded]) -> list[float]:
        """Return the raw score (logit) of each (user turn, response), in their order.

        Conversations run in their order, so that those that begin alike find their beginning in the engine's cache.

        Raises:
            SomeRowsError: conversations are longer than `max_model_len`; the others have their score in it.
        """
        encoded = self.ending.apply(encode(self.tokenizer, conversations))
        failures = dict(too_long(encoded, self.limit))
        good = [i for i in range(len(encoded)) if i not in failures]
        scores: dict[int, float] = {}
        if good:
            outputs = self._compute([encoded[i] for i in good])
            scores = dict(zip(good, choose_score(outputs, self.output).tolist(), strict=True))
        if failures:
            raise SomeRowsError([scores.get(i) for i in range(len(encoded))], failures)
        return [scores[i] for i in range(len(encoded))]

    def _compute(self, texts: Sequence[Encoded]) -> Tensor:
        """Return the outputs [n, outputs] for conversations.

        Raises:
            ValueError: vLLM gave another number of them than the head has.
        """
        import torch

        if self.head is not None:
            with torch.inference_mode():
                return self.head.outputs(self._pool(self.head.sequences(texts), "embed"))
        outputs = self._pool(texts, "classify")
        if outputs.shape[1] != self.layout.outputs:
            raise ValueError(
                f"{self.path}: vllm gives {outputs.shape[1]} outputs, and its head has {self.layout.outputs}; use "
                "engine: transformers for this expert"
            )
        return outputs

    def _pool(self, texts: Sequence[Encoded], task: str) -> Tensor:
        """Return what vLLM's pooler gives for texts, without an activation: [n, size] on the CPU."""
        import torch
        from vllm import PoolingParams

        prompts = [{"prompt_token_ids": list(text.ids)} for text in texts]
        raw = PoolingParams(use_activation=False)
        with nothing_left(self.engine):
            outputs = self.engine.encode(prompts, pooling_params=raw, pooling_task=task, use_tqdm=False)
        return torch.stack([output.outputs.data.reshape(-1).cpu() for output in outputs])

    def close(self) -> None:
        """End the engine; nothing can be scored after it."""
        shut_down(self.engine)
