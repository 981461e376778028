"""Requests that reach vLLM in a window: the texts of vLLM's own loop, few at a time, and a refused one fails alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from carevl.miniworld.items import draw_items
from carevl.miniworld.models import CAPTION_PROMPT
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.vllm_window import run_in_window
from carevl.models.prompts import Prompt, render_prompt
from carevl.models.row_errors import SomeRowsError
from tests.helpers.engines import vllm_engine

pytestmark = pytest.mark.vllm

IN_FLIGHT = 16
"""Of `vllm_engine`."""


@pytest.fixture(scope="module")
def images():
    return [image for image, _ in itertools.islice(draw_items("test", "window"), 50)]


def _requests(images, seed=0):
    return [GenerationRequest((image,), CAPTION_PROMPT, seed=seed + n) for n, image in enumerate(images)]


def _prompts(requests):
    processor = vllm_engine("captioner").processor
    return [
        {"prompt": render_prompt(processor, request.turn), "multi_modal_data": {"image": list(request.images)}}
        for request in requests
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_vllm_s_own_loop(images, temperature):
    from vllm import SamplingParams

    engine = vllm_engine("captioner")
    requests = _requests(images)
    texts = engine.generate(requests, max_tokens=40, temperature=temperature)
    sampling = [SamplingParams(temperature=temperature, max_tokens=40, seed=r.seed) for r in requests]
    outputs = engine.engine.generate(_prompts(requests), sampling, use_tqdm=False)
    tokenizer = engine.processor.tokenizer
    expected = [tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True) for output in outputs]
    assert [text.text for text in texts] == expected


class Watched:
    """An engine that notes how many requests it holds at every step."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.llm_engine = llm, self
        self.held: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name, None) or getattr(self.llm.llm_engine, name)

    def step(self) -> Any:
        self.held.append(self.llm.llm_engine.get_num_unfinished_requests())
        return self.llm.llm_engine.step()


def test_the_engine_holds_twice_what_is_in_flight_and_no_more(images):
    from vllm import SamplingParams

    watched = Watched(vllm_engine("captioner").engine)
    prompts = _prompts(_requests(images))
    sampling = [SamplingParams(max_tokens=20, temperature=0) for _ in prompts]
    texts = []
    for overlaps in (False, True):
        watched.held.clear()
        outputs, refused = run_in_window(watched, prompts, sampling, overlaps=overlaps)
        assert refused == {}
        assert max(watched.held) <= 2 * IN_FLIGHT
        assert overlaps or watched.held[0] == 2 * IN_FLIGHT
        texts.append([list(output.outputs[0].token_ids) for output in outputs])
    assert texts[0] == texts[1]


def _tokens(text):
    engine = vllm_engine("captioner")
    return len(engine.processor.tokenizer(render_prompt(engine.processor, Prompt(text))).input_ids)


def test_a_refused_request_fails_alone_and_its_image_is_not_lost(images):
    engine = vllm_engine("captioner")
    # With the image it is too long, and without it is not: it is refused when the image has been processed already.
    long = next(text for n in range(1024, 0, -1) if _tokens(text := "a " * n) < 1023)
    assert _tokens(long) > 1000
    fresh, other = (image.rotate(90) for image in images[:2])  # images that no cache has seen
    requests = [
        GenerationRequest((other,), CAPTION_PROMPT),
        GenerationRequest((fresh,), long),
        GenerationRequest((fresh,), CAPTION_PROMPT),
    ]
    with pytest.raises(SomeRowsError, match="longer than the maximum model length of 1024") as caught:
        engine.generate(requests, max_tokens=40)
    assert {row: failure.kind for row, failure in caught.value.failures.items()} == {1: "refused"}
    good = engine.generate([requests[0], requests[2]], max_tokens=40)
    assert [text.text for text in caught.value.results if text] == [text.text for text in good]
