"""Requests reach vLLM in a window: as some end, others are added, and the next images are processed ahead in a thread.

vLLM's own `generate` processes every image of a call before it begins, and holds them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from carevl.models.device import device
from carevl.models.engines.card import GIB
from carevl.models.row_errors import NotFiniteError, first_line, is_lost, is_out_of_memory

_WAITING = 256
"""Most requests that wait inside the engine, besides those in flight; fewer where fewer are in flight."""
_HELD = 4 * GIB
"""Bytes of processed images from which no more are added while some are at work."""
_NAN = "NaNs detected in logits"
"""Of what vLLM raises with VLLM_RAISE_ON_LOGIT_NANS, which is set when an engine starts."""
_AHEAD = 16
"""Requests that are processed before there is room for them."""


def run_in_window(
    engine: Any,
    prompts: Sequence[Mapping[str, Any]],
    sampling: Sequence[Any],
    lora: Any = None,
    *,
    overlaps: bool | None = None,
) -> tuple[list[Any], dict[int, str]]:
    """Run requests; they are added in their order.

    On a GPU a thread processes images while the engine works: one, because vLLM's cache of processed images has to see
    requests in the order in which the engine does. On a CPU the engine has all cores, and every step finds the window
    full, so that the same call makes the same batches: sums of floats depend on them.

    Args:
        engine: a `vllm.LLM`, with nothing to do.
        overlaps: whether images are processed while the engine works; None: on a GPU.

    Returns:
        The `RequestOutput` of every request, None where it was refused; and the reasons of those by position.
    """
    from vllm.exceptions import VLLMClientError

    inside = engine.llm_engine
    in_flight = inside.vllm_config.scheduler_config.max_num_seqs
    window = _Window(in_flight + min(in_flight, _WAITING))
    overlaps = device() == "cuda" if overlaps is None else overlaps
    refused: dict[int, str] = {}
    todo, ahead = deque(range(len(prompts))), deque[tuple[int, Future[Any]]]()
    with ThreadPoolExecutor(1) if overlaps else _Inline() as thread, nothing_left(engine):
        try:
            while todo or ahead or window.requests:
                while todo and len(ahead) < _AHEAD:
                    position = todo.popleft()
                    ahead.append((position, thread.submit(process_prompt, engine, prompts[position])))
                if ahead and window.has_room and (not window.requests or ahead[0][1].done()):
                    position, processed = ahead.popleft()
                    try:
                        entry = processed.result()
                    except Exception as error:  # processors raise errors of any kind for what they do not take
                        if is_out_of_memory(error) or is_lost(error):
                            raise
                        refused[position] = first_line(error)
                        continue
                    try:
                        if not _add(engine, position, entry, sampling[position], lora):
                            entry = thread.submit(process_prompt, engine, prompts[position]).result()
                            _add(engine, position, entry, sampling[position], lora)
                        window.add(position, image_bytes(entry))
                    except (ValueError, VLLMClientError) as error:
                        refused[position] = " ".join(str(error).split()) or type(error).__name__
                elif window.requests:
                    window.take(inside.step())
        finally:
            for _, processed in ahead:
                processed.cancel()
    return [window.outputs.get(position) for position in range(len(prompts))], refused


class _Inline(Executor):
    """Calls in the thread of the caller."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


class _Window:
    """The requests that the engine has, and what has come of those that have ended."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.requests: dict[int, int] = {}
        """Position of each to the bytes of its images."""
        self.outputs: dict[int, Any] = {}

    @property
    def has_room(self) -> bool:
        """Whether another request may be added."""
        return not self.requests or (len(self.requests) < self.most and sum(self.requests.values()) < _HELD)

    def add(self, position: int, size: int) -> None:
        """Note a request that the engine was given."""
        self.requests[position] = size

    def take(self, outputs: Sequence[Any]) -> None:
        """Take the results of a step."""
        for output in outputs:
            if output.finished:
                position = int(output.request_id)
                del self.requests[position]
                self.outputs[position] = output


def process_prompt(engine: Any, prompt: Mapping[str, Any]) -> Any:
    """Process the image of a prompt, as `LLM.generate` does; the prompt's `response_ids` come after all else."""
    rest = dict(prompt)
    response_ids = rest.pop("response_ids", [])
    entry = engine._preprocess_cmpl_one(rest)
    if response_ids:
        entry["prompt_token_ids"] = [*entry["prompt_token_ids"], *response_ids]
    return entry


def _add(engine: Any, position: int, entry: Any, sampling: Any, lora: Any) -> bool:
    """Add a request; False where its image has to be processed anew.

    An image that was processed before is sent as its hash alone. The engine lacks it if what it was processed for was
    refused, or never added.
    """
    from vllm.multimodal.cache import MultiModalCacheMissError

    inside = engine.llm_engine
    try:
        inside.add_request(str(position), entry, sampling, lora_request=lora)
    except MultiModalCacheMissError as error:
        inside.abort_request([str(position)])
        for image in error.mm_hashes:
            inside.renderer.mm_processor_cache.invalidate(image)
        return False
    return True


def image_bytes(entry: Mapping[str, Any]) -> int:
    """Return the bytes of a processed request's images; none where the engine has them in its cache."""
    items = [item for kind in (entry.get("mm_kwargs") or {}).values() for item in kind if item is not None]
    values = [element.data for item in items for element in item.values()]
    return sum(value.nbytes for value in values if hasattr(value, "nbytes"))


@contextmanager
def nothing_left(engine: Any) -> Iterator[None]:
    """Take back the requests of a call that failed: vLLM keeps them, and would mix them into the next call.

    Raises:
        NotFiniteError: it failed by logits that are NaN.
    """
    try:
        yield
    except Exception as error:
        inside = engine.llm_engine
        inside.abort_request(list(inside.output_processor.request_states), internal=True)
        if _NAN in str(error):
            engine.reset_prefix_cache()
            engine.collective_rpc(_clear_cache)
            raise NotFiniteError from None
        raise


def _clear_cache(worker: Any) -> None:
    """Take NaN out of a worker's keys and values: it reaches whoever gets these blocks next, though masked."""
    for layer in worker.model_runner.kv_caches:
        layer.zero_()
