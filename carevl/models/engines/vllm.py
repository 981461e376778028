"""Generation and scoring with vLLM: the engine for throughput, on GPUs and (for development) on CPUs.

The engine runs inside the calling process, so that one Ray actor is one engine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.control_strings import encode_text
from carevl.models.engines import transformers
from carevl.models.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    Generator,
    LanguageModel,
    Runner,
    Scorer,
    asking_of_model,
    first_tokens,
    limit_tiles,
)
from carevl.models.engines.card import find_card
from carevl.models.engines.parity import draw_requests, measure_parity
from carevl.models.engines.vllm_arguments import read_shape, vllm_footprint
from carevl.models.engines.vllm_scorer import VllmScorer, unread_reason
from carevl.models.engines.vllm_start import free_memory, prepare_import, shut_down, start_engine
from carevl.models.engines.vllm_support import is_unsupported, unsupported_reason
from carevl.models.engines.vllm_window import process_prompt, run_in_window
from carevl.models.fallbacks import note_fallback
from carevl.models.heads import HeadSettings
from carevl.models.heads.layout import read_layout
from carevl.models.locate import loading_arguments, locate_adapter, model_directory
from carevl.models.prompts import ask_as, encode_prompts, encode_turns, encode_with_row_errors, end_ids, load_processor
from carevl.models.row_errors import REFUSED, Failure, SomeRowsError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from carevl.models.footprint import Footprint
    from carevl.settings.models import Model

_log = logging.getLogger(__name__)


class OtherTokensError(UserError):
    """vLLM reads other tokens of a prompt than training and transformers do."""


class _StartError(Exception):
    """vLLM raised while it started."""


def _start_checked(model: Model, card: str) -> VllmGenerator | str:
    """Start vLLM, held against transformers; return in half a sentence what is different where something is.

    Engines over several GPUs are not checked, for one of which the model may be too large, nor quantised ones, which
    compute something else on purpose.
    """
    started: list[VllmGenerator] = []

    def start() -> VllmGenerator:
        try:
            started.append(VllmGenerator(model))
        except UserError:
            raise
        except Exception as error:
            raise _StartError(first_line(error)) from error
        return started[0]

    if model.tensor_parallel > 1 or "quantization" in model.engine_args:
        return start()
    try:
        parity = measure_parity(model, card, lambda: transformers.ENGINE.generator(model), start)
    except OtherTokensError:
        _close(started)
        return "vllm makes other tokens of a prompt than the model's own processor"
    except Exception as error:
        if started or isinstance(error, _StartError) or not is_out_of_memory(error):
            raise
        _log.warning("%s: not held against transformers, for which memory is too small", model.path)
        return start()
    if parity.holds:
        return started[0] if started else start()
    _close(started)
    return (
        f"log-probabilities of vllm are up to {parity.difference:.3g} nats off those of transformers for the same "
        f"prompts, and {parity.allowed:.3g} are allowed"
    )


def _close(engines: Sequence[VllmGenerator]) -> None:
    for engine in engines:
        engine.close()


def _slot(adapter: Path) -> int:
    """Return the smallest rank that vLLM has room for and the adapter fits in; above them all vLLM refuses."""
    rank: int = json.loads((adapter / "adapter_config.json").read_text())["r"]
    return min((room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank), default=rank)


class VllmGenerator:
    """A vision-language model that answers prompts about images; the same calls as `ImageTextGenerator`.

    Raises:
        UserError: the settings do not suit the model or the card.
    """

    def __init__(self, model: Model) -> None:
        adapter = getattr(model, "adapter", None)
        self.adapter = None if adapter is None else locate_adapter(adapter)
        lora = {} if self.adapter is None else {"enable_lora": True, "max_lora_rank": _slot(self.adapter)}
        self.path = model.path
        processor = load_processor(model_directory(model), **loading_arguments(model))
        self.processor: Any = ask_as(processor, asking_of_model(model))
        tiles = limit_tiles(self.processor, model.max_image_tiles)
        self.engine = start_engine(model, "generate", cuts_tiles=tiles, **lora)
        stored = self.engine.llm_engine.model_config.try_get_generation_config()
        self.ends = end_ids(stored.get("eos_token_id"), self.processor.tokenizer)
        self._checked: set[tuple[tuple[tuple[int, int], ...], str]] = set()
        """Sizes of images, and how they stand, for which vLLM makes the processor's tokens."""
        self._own_placeholder = self._writes_placeholder()

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprob_texts: Sequence[str] = (),
    ) -> list[Generation]:
        """Return one text per request, in their order; greedy at temperature 0.

        Raises:
            SomeRowsError: the engine refuses requests, such as longer ones than `max_model_len`; the others have their
                text in it.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        prompts = self._prompts(requests)
        logprob_ids = first_tokens(self.processor.tokenizer, logprob_texts)
        sampling = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=request.seed if temperature else None,
                stop_token_ids=sorted(self.ends),
                logprob_token_ids=sorted(set(logprob_ids)) if logprob_ids else None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
        ]
        lora = None if self.adapter is None else LoRARequest("adapter", 1, str(self.adapter))
        outputs, refused = run_in_window(self.engine, prompts, sampling, lora)
        self._check_tokens(requests, outputs)
        texts = [None if output is None else self._generation(output.outputs[0], logprob_ids) for output in outputs]
        if refused:
            raise SomeRowsError(texts, {i: Failure(REFUSED, message) for i, message in refused.items()})
        return [text for text in texts if text is not None]

    def _prompts(self, requests: Sequence[GenerationRequest]) -> list[dict[str, Any]]:
        turns = encode_turns(self.processor, [request.turn for request in requests])
        if self._own_placeholder:
            placeholder = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
            turns = [[token for token in ids if token != placeholder] for ids in turns]
        return [
            {
                "prompt_token_ids": ids,
                **({"multi_modal_data": {"image": list(request.images)}} if request.images else {}),
                "response_ids": encode_text(self.processor.tokenizer, request.response_prefix),
            }
            for request, ids in zip(requests, turns, strict=True)
        ]

    def _writes_placeholder(self) -> bool:
        """Tell whether vLLM puts the image into a prompt by itself, as PaliGemma's, in place of expanding its token."""
        self._own_placeholder = False
        [request, *_] = draw_requests()
        expected = encode_prompts(self.processor, [request.turn], [request.images]).ids[0]
        return bool(process_prompt(self.engine, self._prompts([request])[0])["prompt_token_ids"] != expected)

    def _check_tokens(self, requests: Sequence[GenerationRequest], outputs: Sequence[Any]) -> None:
        """Hold what vLLM read of the first request about an image of every size against everything else's tokens.

        Raises:
            OtherTokensError: it read others.
        """
        for request, output in zip(requests, outputs, strict=True):
            key = tuple(image.size for image in request.images), request.turn.kind
            if output is None or key in self._checked:
                continue
            encoded, _ = encode_with_row_errors(self.processor, [request.turn], [request.images])
            if encoded is None or list(output.prompt_token_ids) != encoded.ids[0]:
                sizes = ", ".join(f"{width} x {height}" for width, height in key[0]) or "no size"
                raise OtherTokensError(
                    f"{self.path}: vllm makes other tokens of a prompt with images of {sizes} than the model's own "
                    "processor; use engine: transformers for it"
                )
            self._checked.add(key)

    def _generation(self, completion: Any, logprob_ids: Sequence[int]) -> Generation:
        # vLLM does not write tokens out (`detokenize`): it would write those of `logprob_ids` too, at every token,
        # which takes a third of the time of small models.
        by_token = completion.logprobs if logprob_ids else ()
        logprobs = tuple(tuple(at_token[i].logprob for i in logprob_ids) for at_token in by_token)
        tokens = list(completion.token_ids)
        written = tokens[:-1] if tokens[-1] in self.ends else tokens
        text = self.processor.tokenizer.decode(written, skip_special_tokens=True)
        return Generation(text, len(tokens), completion.finish_reason == "length", logprobs)

    def close(self) -> None:
        """End the engine; nothing can be generated after it."""
        shut_down(self.engine)


class VllmEngine(Engine):
    """Models in vLLM, each with the share of a GPU that its actor reserves."""

    name = "vllm"

    def generator(self, model: Model) -> Generator:
        """Load a vision-language model; into transformers where vLLM cannot run it, or computes something else.

        Raises:
            UserError: as `VllmGenerator`; or vLLM cannot run it, and it is spread over several GPUs.
        """
        card = find_card()
        prepare_import(model, card)
        reason = unsupported_reason(model, card)
        if reason is None:
            try:
                loaded = _start_checked(model, card.name if card else "CPU")
            except _StartError as error:
                # With arguments of the user's own, the error may be about those.
                if model.engine_args or model.tensor_parallel > 1 or not is_unsupported(error):
                    raise
                reason = f"vllm does not start it ({error})"
            else:
                if isinstance(loaded, VllmGenerator):
                    return loaded
                reason = loaded
            free_memory()
        if model.tensor_parallel > 1:
            raise UserError(f"{model.path}: {reason}; set tensor_parallel to 1 and engine: transformers")
        note_fallback(f"{model.path}: {reason}; it runs in transformers")
        return transformers.ENGINE.generator(model)

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; into transformers where vLLM cannot run its body, or its own code has its head.

        vLLM itself shares out tokens, by the sequences that are in flight.

        Raises:
            UserError: as `VllmScorer`; or vLLM cannot run it, and it is spread over several GPUs.
        """
        card = find_card()
        prepare_import(model, card)
        layout = read_layout(model_directory(model), HeadSettings.of(model), **loading_arguments(model))
        reason = unread_reason(model, layout)
        if reason is None:
            return VllmScorer(model, layout, card.name if card else "CPU", parity_tolerance)
        if model.tensor_parallel > 1:
            raise UserError(f"{model.path}: {reason}; set tensor_parallel to 1 and engine: transformers")
        note_fallback(f"{model.path}: {reason}; it runs in transformers")
        return transformers.ENGINE.scorer(model, batch_tokens=batch_tokens, parity_tolerance=parity_tolerance)

    def language_model(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> LanguageModel:
        """Load a language model; as for `scorer`."""
        from carevl.models.engines.vllm_language_model import VllmLanguageModel

        del batch_tokens
        return VllmLanguageModel(model, parity_tolerance)

    def footprint(self, model: Model, path: str, runner: Runner) -> Footprint | None:
        """Return what weights, a step and the cache of one text take."""
        return vllm_footprint(model, read_shape(path, model.dtype, loading_arguments(model)), runner)


ENGINE = VllmEngine()
