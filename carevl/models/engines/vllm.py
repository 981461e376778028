"""Generation and scoring with vLLM: the engine for throughput, on GPUs and (for development) on CPUs.

The engine runs inside the calling process, so that one Ray actor is one engine.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.conversations import Conversation, Encoded, encode, too_long
from carevl.models.device import check_vllm_build, device
from carevl.models.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    Generator,
    Scorer,
    first_tokens,
    write_prompt,
)
from carevl.models.locate import loading_arguments, locate_adapter, model_directory
from carevl.models.row_errors import SomeRowsError

if TYPE_CHECKING:
    from carevl.settings.models import Captioner, Judge, Model

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


_SITE = str(Path(__file__).parents[2] / "_site")


def _room(model: str | Path, max_model_len: int, loading: Mapping[str, Any]) -> int:
    """Return `max_model_len`, or what the model reads at most where that is less: vLLM refuses more."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, **loading)
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(max_model_len, most or max_model_len)


def _engine(
    model: str | Path, gpu_share: float, tensor_parallel: int, dtype: str, loading: Mapping[str, Any], **arguments: Any
) -> Any:
    """Build a vLLM engine in this process; settings already in the environment win over ours."""
    if dtype == "auto":
        # Left to itself, vLLM computes float32 weights in float16: scores move in their third digit.
        from transformers import AutoConfig

        stored = AutoConfig.from_pretrained(model, **loading).dtype
        dtype = "auto" if stored is None else str(stored).removeprefix("torch.")
    if gpu_share < 1:
        # By itself it takes nearly all of the memory, whoever else is on the GPU.
        arguments["gpu_memory_utilization"] = 0.9 * gpu_share
    environment = dict(_ENVIRONMENT)
    if tensor_parallel > 1:
        # In processes of its own: inside an actor it would else ask Ray for GPUs that the actor has reserved already.
        arguments |= {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # by itself it wants a NUMA node for each process
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([_SITE, *filter(None, paths)]))
    check_vllm_build()
    from vllm import LLM

    return LLM(model=str(model), dtype=dtype, enforce_eager=True, disable_log_stats=True, **loading, **arguments)


@contextmanager
def _nothing_left(engine: Any) -> Iterator[None]:
    """Take back the requests of a call that failed: vLLM keeps them, and would mix them into the next call."""
    try:
        yield
    except Exception:
        inside = engine.llm_engine
        inside.abort_request(list(inside.output_processor.request_states), internal=True)
        raise


def _whole_prompts(max_model_len: int) -> dict[str, Any]:
    """Read prompts in one piece on a CPU: vLLM cannot set back a seeded CPU generator after part of a prompt."""
    if device() == "cuda":
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_model_len)}


def _slot(adapter: Path) -> int:
    """Return the smallest rank that vLLM has room for and the adapter fits in; above them all vLLM refuses."""
    rank: int = json.loads((adapter / "adapter_config.json").read_text())["r"]
    return min((room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank), default=rank)


class VllmGenerator:
    """A vision-language model that answers prompts about images; the same calls as `ImageTextGenerator`.

    Args:
        model: a Hugging Face directory or hub id.
        max_model_len: most tokens of prompt and answer together, if the model reads so many.
        batch_size: most sequences in flight.
        gpu_share: share of a GPU that the engine has to itself, and so of its memory.
        tensor_parallel: GPUs that the engine is spread over; on a CPU, processes.
        adapter: directory of a LoRA adapter on top of it, which is not merged.
        loading: `trust_remote_code`, handed to vLLM and transformers.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        max_model_len: int = 1024,
        batch_size: int = 64,
        gpu_share: float = 1.0,
        tensor_parallel: int = 1,
        adapter: Path | None = None,
        **loading: Any,
    ) -> None:
        max_model_len = _room(model, max_model_len, loading)
        self.adapter = adapter
        self.engine = _engine(
            model,
            gpu_share,
            tensor_parallel,
            dtype,
            loading,
            max_model_len=max_model_len,
            max_num_seqs=batch_size,
            limit_mm_per_prompt={"image": 1, "video": 0},
            **_whole_prompts(max_model_len),
            **({} if adapter is None else {"enable_lora": True, "max_lora_rank": _slot(adapter)}),
        )
        from transformers import AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(model, **loading)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprob_texts: Sequence[str] = (),
    ) -> list[Generation]:
        """Return one text per request, in their order; greedy at temperature 0."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        prompts = [
            {"prompt": write_prompt(self.processor, request), "multi_modal_data": {"image": request.image}}
            for request in requests
        ]
        logprob_ids = first_tokens(self.processor.tokenizer, logprob_texts)
        sampling = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=request.seed if temperature else None,
                logprob_token_ids=sorted(set(logprob_ids)) if logprob_ids else None,
                detokenize=False,
            )
            for request in requests
        ]
        with _nothing_left(self.engine):
            lora = None if self.adapter is None else LoRARequest("adapter", 1, str(self.adapter))
            outputs = self.engine.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
        return [_generation(output.outputs[0], self.processor.tokenizer, logprob_ids) for output in outputs]


def _generation(completion: Any, tokenizer: Any, logprob_ids: Sequence[int]) -> Generation:
    # vLLM does not write tokens out (`detokenize`): it would write those of `logprob_ids` too, at every token, which
    # takes a third of the time of small models.
    by_token = completion.logprobs if logprob_ids else ()
    logprobs = tuple(tuple(at_token[i].logprob for i in logprob_ids) for at_token in by_token)
    text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    return Generation(text, len(completion.token_ids), completion.finish_reason == "length", logprobs)


class VllmScorer:
    """A text reward model; the same calls as `RewardScorer`.

    Args:
        max_model_len: longest conversation in tokens, if the model reads so many.
        batch_size: most conversations in flight.
        parity_tolerance: largest difference from the scores of `RewardScorer` on a small sample, as a share of the
            largest of them; None: not checked.

    Raises:
        UserError: the scores of the sample differ by more.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        max_model_len: int = 1024,
        batch_size: int = 64,
        gpu_share: float = 1.0,
        tensor_parallel: int = 1,
        parity_tolerance: float | None = None,
        **loading: Any,
    ) -> None:
        from transformers import AutoTokenizer

        # The reference goes first, so that the engine finds the memory free.
        expected = None if parity_tolerance is None else _reference(model, dtype, loading)
        self.limit = max_model_len = _room(model, max_model_len, loading)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, **loading)
        self.engine = _engine(
            model,
            gpu_share,
            tensor_parallel,
            dtype,
            loading,
            runner="pooling",
            max_model_len=max_model_len,
            max_num_seqs=batch_size,
        )
        if expected is not None and parity_tolerance is not None:
            _check_parity(model, expected, self.score(_SAMPLE), parity_tolerance)

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
        with _nothing_left(self.engine):
            outputs = self.engine.classify(prompts, pooling_params=raw, use_tqdm=False) if prompts else []
        scores = {i: float(output.outputs.probs[0]) for i, output in zip(good, outputs, strict=True)}
        if failures:
            raise SomeRowsError([scores.get(i) for i in range(len(encoded))], failures)
        return [scores[i] for i in range(len(encoded))]


_SAMPLE: list[Conversation] = [
    (f"{caption}\nHow many circles are there?", response)
    for caption in ("A blue square.", "Two red circles are to the left of a green triangle, above a yellow cross.")
    for response in ("None.", "There are two circles, and both of them are red.", "I see 7 circles, I think.")
]
"""What engine and reference both score before work begins; short enough for any expert."""


def _reference(model: str | Path, dtype: str, loading: Mapping[str, Any]) -> list[float]:
    import torch

    from carevl.models.reward_scorer import RewardScorer

    scores = RewardScorer(model, dtype, **loading).score(_SAMPLE)
    gc.collect()
    torch.cuda.empty_cache()
    return scores


def _check_parity(model: str | Path, expected: Sequence[float], scores: Sequence[float], tolerance: float) -> None:
    off = max(abs(a - b) for a, b in zip(expected, scores, strict=True))
    allowed = tolerance * max(map(abs, expected))
    if not off <= allowed:
        raise UserError(
            f"{model}: vllm and transformers disagree by up to {off:.4g}, and parity_tolerance {tolerance} allows "
            f"{allowed:.4g}: vllm gives {_short(scores)} and transformers {_short(expected)} for the same texts; "
            "use engine: transformers for this expert"
        )


def _short(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)


class VllmEngine(Engine):
    """Models in vLLM, each with the share of a GPU that its actor reserves."""

    name = "vllm"

    def generator(self, model: Captioner | Judge) -> Generator:
        """Load a vision-language model."""
        arguments, adapter = engine_arguments(model), getattr(model, "adapter", None)
        return VllmGenerator(
            model_directory(model), **arguments, adapter=None if adapter is None else locate_adapter(adapter)
        )

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; vLLM itself shares out tokens, by the sequences that are in flight."""
        del batch_tokens
        return VllmScorer(model_directory(model), **engine_arguments(model), parity_tolerance=parity_tolerance)


def engine_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that `VllmGenerator` and `VllmScorer` have in common."""
    return {
        "dtype": model.dtype,
        "batch_size": model.pool.batch_size,
        "max_model_len": model.max_model_len,
        "gpu_share": min(model.pool.num_gpus, 1.0) or 1.0,
        "tensor_parallel": model.tensor_parallel,
        **loading_arguments(model),
    }


ENGINE = VllmEngine()
