"""Generation and scoring with vLLM: the engine for throughput, on GPUs and (for development) on CPUs.

The engine runs inside the calling process, so that one Ray actor is one engine.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carevl.errors import UserError
from carevl.models.conversations import Conversation, Encoded, encode, too_long
from carevl.models.device import check_vllm_build
from carevl.models.engines import transformers
from carevl.models.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    Generator,
    LanguageModel,
    Scorer,
    first_tokens,
    limit_tiles,
)
from carevl.models.engines.card import Card, find_card, free_bytes, wait_for_room
from carevl.models.engines.parity import SAMPLE, check_parity, draw_requests, find_reference, measure_parity
from carevl.models.engines.vllm_arguments import check_engine_args, needed_bytes, read_shape, vllm_arguments
from carevl.models.engines.vllm_support import is_unsupported, unsupported_reason
from carevl.models.engines.vllm_window import nothing_left, process_prompt, run_in_window
from carevl.models.fallbacks import note_fallback
from carevl.models.locate import loading_arguments, locate_adapter, model_directory
from carevl.models.prompts import (
    encode_prompts,
    encode_text,
    encode_turns,
    encode_with_row_errors,
    end_ids,
    load_processor,
)
from carevl.models.row_errors import REFUSED, Failure, SomeRowsError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from carevl.settings.models import Captioner, Judge, Model

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiled with nvcc at its first use; requests with seeds pass it by
}
_ON_CPU = {"VLLM_MLA_DISABLE": "1"}
"""Of models without MLA, vLLM's CPU platform asks in a way that Qwen3-VL's configuration has no answer to."""

_SITE = str(Path(__file__).parents[2] / "_site")


def _prepare_import(model: Model, card: Card | None) -> None:
    """Set vLLM's environment variables, unless they are set already, and check that it fits this machine."""
    environment = _ENVIRONMENT | (_ON_CPU if card is None else {})
    if model.tensor_parallel > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # by itself it wants a NUMA node for each process
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([_SITE, *filter(None, paths)]))
    check_vllm_build()


def start_engine(
    model: Model, runner: Literal["generate", "pooling"], *, cuts_tiles: bool = False, **arguments: Any
) -> Any:
    """Build a vLLM engine in this process; settings already in the environment win over ours.

    Raises:
        UserError: see `vllm_arguments`, `check_engine_args` and `wait_for_room`.
    """
    card = find_card()
    _prepare_import(model, card)
    check_engine_args(model)
    path = model_directory(model)
    shape = replace(read_shape(path, model.dtype, loading_arguments(model)), cuts_tiles=cuts_tiles)
    arguments = vllm_arguments(model, path, shape, card, runner) | arguments
    if card is not None:
        wait_for_room(needed_bytes(arguments, card), lambda: free_bytes(model.tensor_parallel))
    from vllm import LLM

    return LLM(**arguments)


def shut_down(engine: Any) -> None:
    """End an engine and its processes, and give its memory back."""
    engine.llm_engine.engine_core.shutdown()
    _free_memory()


def _free_memory() -> None:
    """Give back the memory of what is no longer used, such as an engine whose start failed."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


class OtherTokensError(UserError):
    """vLLM reads other tokens of a prompt than training and transformers do."""


class _StartError(Exception):
    """vLLM raised while it started."""


def _start_checked(model: Captioner | Judge, card: str) -> VllmGenerator | str:
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

    def __init__(self, model: Captioner | Judge) -> None:
        adapter = getattr(model, "adapter", None)
        self.adapter = None if adapter is None else locate_adapter(adapter)
        lora = {} if self.adapter is None else {"enable_lora": True, "max_lora_rank": _slot(self.adapter)}
        self.path = model.path
        self.processor: Any = load_processor(model_directory(model), **loading_arguments(model))
        tiles = limit_tiles(self.processor, model.max_image_tiles)
        self.engine = start_engine(model, "generate", cuts_tiles=tiles, **lora)
        stored = self.engine.llm_engine.model_config.try_get_generation_config()
        self.ends = end_ids(stored.get("eos_token_id"), self.processor.tokenizer)
        self._checked: set[tuple[tuple[int, int], bool]] = set()
        """Sizes of images, and their places, for which vLLM makes the processor's tokens."""
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
                "multi_modal_data": {"image": request.image},
                "response_ids": encode_text(self.processor.tokenizer, request.response_prefix),
            }
            for request, ids in zip(requests, turns, strict=True)
        ]

    def _writes_placeholder(self) -> bool:
        """Tell whether vLLM puts the image into a prompt by itself, as PaliGemma's, in place of expanding its token."""
        self._own_placeholder = False
        [request, *_] = draw_requests()
        expected = encode_prompts(self.processor, [request.turn], [request.image]).ids[0]
        return bool(process_prompt(self.engine, self._prompts([request])[0])["prompt_token_ids"] != expected)

    def _check_tokens(self, requests: Sequence[GenerationRequest], outputs: Sequence[Any]) -> None:
        """Hold what vLLM read of the first request about an image of every size against everything else's tokens.

        Raises:
            OtherTokensError: it read others.
        """
        for request, output in zip(requests, outputs, strict=True):
            key = request.image.size, request.image_first
            if output is None or key in self._checked:
                continue
            encoded, _ = encode_with_row_errors(self.processor, [request.turn], [request.image])
            if encoded is None or list(output.prompt_token_ids) != encoded.ids[0]:
                width, height = request.image.size
                raise OtherTokensError(
                    f"{self.path}: vllm makes other tokens of a prompt about an image of {width} x {height} than the "
                    "model's own processor; use engine: transformers for it"
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


class VllmScorer:
    """A text reward model; the same calls as `RewardScorer`.

    Args:
        parity_tolerance: largest difference from the scores of `RewardScorer` on a small sample, as a share of the
            largest of them; None: not checked.

    Raises:
        UserError: the scores of the sample differ by more; or the settings do not suit the model or the card.
    """

    def __init__(self, model: Model, parity_tolerance: float | None = None) -> None:
        from transformers import AutoTokenizer

        loading = loading_arguments(model)
        # The reference goes first, so that the engine finds the memory free.
        card = find_card()
        reference = None if parity_tolerance is None else find_reference(model, card.name if card else "CPU")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_directory(model), **loading)
        self.engine = start_engine(model, "pooling")
        self.limit: int = self.engine.llm_engine.vllm_config.model_config.max_model_len
        if reference is not None and parity_tolerance is not None:
            check_parity(model.path, reference, self.score(SAMPLE), parity_tolerance)

    def score(self, conversations: Sequence[Conversation | Encoded]) -> list[float]:
        """Return the raw score (logit) of each (user turn, response), in their order.

        Conversations run in their order, so that those that begin alike find their beginning in the engine's cache.

        Raises:
            SomeRowsError: conversations are longer than `max_model_len`; the others have their score in it.
        """
        from vllm import PoolingParams

        encoded = encode(self.tokenizer, conversations)
        failures = dict(too_long(encoded, self.limit))
        good = [i for i in range(len(encoded)) if i not in failures]
        prompts = [{"prompt_token_ids": list(encoded[i].ids)} for i in good]
        raw = PoolingParams(use_activation=False)
        with nothing_left(self.engine):
            outputs = self.engine.classify(prompts, pooling_params=raw, use_tqdm=False) if prompts else []
        scores = {i: float(output.outputs.probs[0]) for i, output in zip(good, outputs, strict=True)}
        if failures:
            raise SomeRowsError([scores.get(i) for i in range(len(encoded))], failures)
        return [scores[i] for i in range(len(encoded))]

    def close(self) -> None:
        """End the engine; nothing can be scored after it."""
        shut_down(self.engine)


class VllmEngine(Engine):
    """Models in vLLM, each with the share of a GPU that its actor reserves."""

    name = "vllm"

    def generator(self, model: Captioner | Judge) -> Generator:
        """Load a vision-language model; into transformers where vLLM cannot run it, or computes something else.

        Raises:
            UserError: as `VllmGenerator`; or vLLM cannot run it, and it is spread over several GPUs.
        """
        card = find_card()
        _prepare_import(model, card)
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
            _free_memory()
        if model.tensor_parallel > 1:
            raise UserError(f"{model.path}: {reason}; set tensor_parallel to 1 and engine: transformers")
        note_fallback(f"{model.path}: {reason}; it runs in transformers")
        return transformers.ENGINE.generator(model)

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; vLLM itself shares out tokens, by the sequences that are in flight."""
        del batch_tokens
        return VllmScorer(model, parity_tolerance)

    def language_model(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> LanguageModel:
        """Load a language model; as for `scorer`."""
        from carevl.models.engines.vllm_language_model import VllmLanguageModel

        del batch_tokens
        return VllmLanguageModel(model, parity_tolerance)


ENGINE = VllmEngine()
