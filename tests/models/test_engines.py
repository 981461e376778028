"""vLLM, the real engine, against transformers: same greedy texts, same scores.

The engine spread over two processes is nightly, it starts vLLM twice, and so is the closed one, which starts it thrice.
"""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carevl.judging.prompts import judge_prompt
from carevl.judging.verdicts import read_verdict
from carevl.miniworld.items import draw_items
from carevl.miniworld.models import CAPTION_PROMPT
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines import generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.prompts import encode_prompts, render_prompt
from carevl.models.row_errors import REFUSED, SomeRowsError
from carevl.settings.models import Judge, Pool
from carevl.store.run import RunError
from carevl.training.adapters import Adapter, compose
from tests.helpers.engines import transformers_engine, vllm_engine

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def drawn():
    return [(image, items[0]) for image, items in itertools.islice(draw_items("test", "engines"), 16)]


def _ask(item):
    return judge_prompt("pairwise", item.question.text, [response.text for response in item.responses])


def _evidence(generation):
    return read_verdict(generation.text).evidence


@pytest.mark.parametrize("name", ["judge", "captioner"])
def test_greedy_texts_are_those_of_transformers(name, drawn):
    requests = [GenerationRequest((image,), _ask(item) if name == "judge" else CAPTION_PROMPT) for image, item in drawn]
    expected = transformers_engine(name).generate(requests, max_tokens=80, logprob_texts=["1", "2"])
    actual = vllm_engine(name).generate(requests, max_tokens=80, logprob_texts=["1", "2"])
    assert [g.text for g in actual] == [g.text for g in expected]
    assert [g.tokens for g in actual] == [g.tokens for g in expected]
    assert not any(g.truncated for g in actual)
    for ours, theirs in zip(actual, expected, strict=True):
        assert len(ours.logprobs) == ours.tokens
        likely = np.exp(ours.logprobs) > 0.01
        assert np.exp(ours.logprobs)[likely] == pytest.approx(np.exp(theirs.logprobs)[likely], abs=1e-3)


@pytest.mark.nightly
def test_an_engine_spread_over_two_processes_writes_the_same_texts(drawn):
    script = Path(__file__).with_name("spread_engine.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [printed] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"processes"')]
    requests = [GenerationRequest((image,), CAPTION_PROMPT) for image, _ in drawn[:8]]
    expected = transformers_engine("captioner").generate(requests, max_tokens=40)
    assert printed == {"processes": 2, "texts": [g.text for g in expected]}


@pytest.mark.nightly
def test_an_engine_that_is_closed_gives_its_memory_to_the_next():
    script = Path(__file__).with_name("closed_engine.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [printed] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"same"')]
    assert printed["same"]
    first, *later = printed["held"]
    assert max(later) < first + 2**28  # an engine that is only dropped keeps over a gigabyte


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """(adapter composed of two, the judge merged with both): random, and large enough that texts change."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    directory = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    judge = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "judge")
    language = r"model\.language_model\..*"
    adapted = get_peft_model(judge, LoraConfig(r=12, lora_alpha=24, target_modules=language + r"(q|down)_proj"))
    adapted.add_adapter("second", LoraConfig(r=8, lora_alpha=8, target_modules=language + r"(q|v)_proj"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(directory / "both")
    parts = [Adapter.read(place) for place in (directory / "both", directory / "both" / "second")]
    parts = [Adapter({**part.config, "target_modules": part.modules}, part.tensors) for part in parts]
    compose(parts, "miniworld:judge").write(directory / "adapter")
    adapted.merge_and_unload(adapter_names=["default", "second"]).save_pretrained(directory / "judge")
    AutoProcessor.from_pretrained(WEIGHTS / "judge").save_pretrained(directory / "judge")
    return directory / "adapter", directory / "judge"


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_adapter_that_is_not_merged_writes_what_the_merged_judge_writes(drawn, adapted, engine):
    adapter, merged = adapted
    requests = [GenerationRequest((image,), _ask(item)) for image, item in drawn]
    expected = ImageTextGenerator(merged).generate(requests, max_tokens=40)
    judge = Judge(
        path="miniworld:judge", adapter=str(adapter), engine=engine, max_model_len=512, pool=Pool(batch_size=16)
    )
    actual = generator(judge).generate(requests, max_tokens=40)
    assert [g.text for g in actual] == [g.text for g in expected]
    assert [g.text for g in actual] != [g.text for g in transformers_engine("judge").generate(requests, max_tokens=40)]


def test_what_is_no_adapter_is_refused():
    with pytest.raises(RunError, match=r"judge has no adapter_config\.json"):
        generator(Judge(path="miniworld:judge", adapter=str(WEIGHTS / "judge")))


def test_a_reply_goes_on_from_its_beginning(drawn):
    requests = [
        GenerationRequest((image,), _ask(item), response_prefix="Overall Judgment: Answer ") for image, item in drawn
    ]
    for engine in (
        transformers_engine("judge"),
        vllm_engine("judge"),
    ):
        actual = engine.generate(requests, max_tokens=1, logprob_texts=["1", "2"])
        assert {g.text for g in actual} <= {"1", "2"}
        assert all(0.8 < sum(np.exp(g.logprobs[0])) < 1.001 for g in actual)


@pytest.mark.parametrize("engine", [transformers_engine, vllm_engine])
def test_sampled_texts_depend_on_the_seed_alone(drawn, engine):
    engine = engine("judge")
    first, repeated, other = (
        [
            g.text
            for g in engine.generate(
                [GenerationRequest((image,), _ask(item), seed=seed + n) for n in range(3) for image, item in drawn[:4]],
                max_tokens=80,
                temperature=1.0,
            )
        ]
        for seed in (1, 1, 100)
    )
    assert first == repeated
    assert first != other
    assert any(read_verdict(text).status == "ok" for text in first)


def test_a_small_nucleus_leaves_the_likeliest_token_and_images_may_come_last(drawn):
    first = [GenerationRequest((image,), _ask(item), seed=n) for n, (image, item) in enumerate(drawn[:4])]
    last = [replace(request, places=(len(request.prompt),)) for request in first]
    reference = transformers_engine("judge")
    begun = [render_prompt(reference.processor, asked[0].turn) for asked in (last, first)]
    assert [text.index("<|image_pad|>") > text.index("Question") for text in begun] == [True, False]
    greedy = [[g.text for g in reference.generate(requests, max_tokens=40)] for requests in (first, last)]
    assert greedy[0] != greedy[1]
    for engine in (reference, vllm_engine("judge")):
        for requests, expected in zip((first, last), greedy, strict=True):
            actual = engine.generate(requests, max_tokens=40, temperature=1.0, top_p=1e-6)
            assert [g.text for g in actual] == expected
        hot = {"max_tokens": 40, "temperature": 2.0}
        assert engine.generate(first, **hot, top_p=0.5) != engine.generate(first, **hot)


def test_sampled_texts_do_not_depend_on_the_batch(drawn):
    requests = [GenerationRequest((image,), _ask(item), seed=n) for n, (image, item) in enumerate(drawn)]
    few, many = (
        ImageTextGenerator(WEIGHTS / "judge", batch_size=size).generate(requests, max_tokens=80, temperature=1.0)
        for size in (3, 16)
    )
    assert [g.text for g in few] == [g.text for g in many]


def test_draws_follow_the_softmax(drawn):
    image, item = drawn[0]
    begun = "Overall Judgment: Answer "
    requests = [GenerationRequest((image,), _ask(item), begun, seed=n) for n in range(400)]
    actual = transformers_engine("judge").generate(requests, max_tokens=1, temperature=2.0, logprob_texts=["1"])
    [greedy] = transformers_engine("judge").generate(requests[:1], max_tokens=1, logprob_texts=["1", "2"])
    odds = (greedy.logprobs[0][0] - greedy.logprobs[0][1]) / 2.0
    drawn_digits = [g.text for g in actual if g.text in ("1", "2")]
    share = drawn_digits.count("1") / len(drawn_digits)
    assert share == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.08)  # three standard errors of 400 draws


def test_a_text_cut_at_the_limit_says_so(drawn):
    [cut] = transformers_engine("judge").generate([GenerationRequest((drawn[0][0],), _ask(drawn[0][1]))], max_tokens=3)
    assert cut.truncated
    assert cut.tokens == 3


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_prompt_and_answer_fit_in_max_model_len_or_are_the_error_of_their_row(drawn, engine):
    image, item = drawn[0]
    longer = f"{_ask(item)} Say why, word by word."
    requests = [GenerationRequest((image,), text, seed=seed) for seed in (1, 2) for text in (_ask(item), longer)]
    reference = transformers_engine("judge")
    [tokens] = encode_prompts(reference.processor, [requests[0].turn], [[image]]).ids
    judge = Judge(path="miniworld:judge", engine=engine, max_model_len=len(tokens) + 3, pool=Pool(batch_size=4))
    with pytest.raises(SomeRowsError) as raised:
        generator(judge).generate(requests, max_tokens=40)
    [whole] = reference.generate(requests[:1], max_tokens=3)
    assert raised.value.results == [whole, None, whole, None]
    assert {i: failure.kind for i, failure in raised.value.failures.items()} == {1: REFUSED, 3: REFUSED}


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        ImageTextGenerator(tmp_path)
