"""A judge is asked as its settings say, or as it was trained: in its words, its system turn, its template's options."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from carevl import RewardModel
from carevl.benchmarks.question_tables import from_row, to_questions
from carevl.benchmarks.questions import ask_as_trained, judge_question
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suites import SUITES
from carevl.judging.prompts import judge_prompt
from carevl.models.engines.base import Generation
from carevl.models.judge_spec import JudgeSpec, asking_of
from carevl.models.prompts import Prompt, ask_as, encode_prompts, encode_turns, load_processor
from carevl.settings.asking import Asking
from carevl.settings.loader import load_settings
from carevl.settings.models import Judge
from carevl.stages import demonstrate, sft
from tests.helpers.finished_run import FINISHED

WORDS = "Compare for: {question}\n{answers}\nOne sentence, then Overall Judgment: Answer N is better."
ASKING = Asking(pairwise=WORDS, system="You are strict.", image_first=False)
PICTURE = Image.new("RGB", (56, 56), "red")


@pytest.fixture(scope="module")
def processor(family_directory):
    return load_processor(str(family_directory("qwen2_5_vl")))


def _own_ids(processor, messages, **options):
    return processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )["input_ids"][0]


def test_a_prompt_has_its_system_turn_and_its_image_behind_the_words(processor):
    content = [{"type": "text", "text": "Which?"}, {"type": "image", "image": PICTURE}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are strict."}]},
        {"role": "user", "content": content},
    ]
    encoded = encode_prompts(ask_as(processor, ASKING), [Prompt("Which?")], [[PICTURE]])
    assert encoded.ids[0] == list(_own_ids(processor, messages))
    assert encode_prompts(processor, [Prompt("Which?")], [[PICTURE]]).ids != encoded.ids


def test_options_reach_the_chat_template(processor):
    thinking = ask_as(processor, Asking(template_kwargs={"marked": True}))
    thinking.chat_template = processor.chat_template + "{% if marked %}<|im_start|>{% endif %}"
    processor_without = ask_as(thinking, Asking())
    [[*marked]], [[*plain]] = (encode_turns(each, [Prompt("Which?")]) for each in (thinking, processor_without))
    assert marked[:-1] == plain
    assert marked[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_control_strings_stay_plain_in_words_of_ones_own(processor):
    prompt = judge_prompt("pairwise", "<|im_end|>?", ["a<|im_start|>", "b"], template=WORDS)
    assert prompt.startswith("Compare for: <|im_end|>?\nAnswer 1: a<|im_start|>\nAnswer 2: b\n")
    start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    counts = [encode_turns(ask_as(processor, asking), [Prompt(prompt)])[0].count(start) for asking in (None, ASKING)]
    assert counts == [3, 3]  # system, user and the beginning of the reply


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("Compare {question}", "has to name {question} and {answers}"),
        ("{question} {answers} {caption}", "has to name {question} and {answers}"),
        ("{question} {answers} {", "write a brace that stands for itself twice"),
    ],
)
def test_words_that_cannot_be_filled_in_are_refused(template, problem):
    with pytest.raises(ValidationError, match=problem.replace("{", r"\{").replace("}", r"\}")):
        Asking(ranking=template)


def test_a_directory_says_how_its_judge_is_asked_and_settings_say_more(family_directory, tmp_path):
    shutil.copytree(family_directory("qwen2_5_vl"), tmp_path / "judge")
    judge = Judge(path=str(tmp_path / "judge"))
    assert asking_of(judge) == Asking()
    JudgeSpec(asking=ASKING).write(tmp_path / "judge")
    assert json.loads((tmp_path / "judge" / "carevl.json").read_text())["asking"]["system"] == "You are strict."
    assert asking_of(judge) == ASKING
    assert asking_of(judge.model_copy(update={"asking": Asking(system="Be kind.")})) == Asking(system="Be kind.")


def test_reward_models_ask_as_the_directory_says(family_directory, tmp_path):
    shutil.copytree(family_directory("qwen2_5_vl"), tmp_path / "judge")
    JudgeSpec(asking=ASKING).write(tmp_path / "judge")
    model = RewardModel(tmp_path / "judge", max_tokens=4, max_model_len=1024)
    engine: Any = model.engine
    asked, generate = [], engine.generate

    def spy(requests, **arguments):
        asked.extend(requests)
        return generate(requests, **arguments)

    engine.generate = spy
    model.judge(PICTURE, "What?", ("A cat.", "A dog."))
    assert {request.prompt.split("\n")[0] for request in asked} == {"Compare for: What?"}
    assert engine.processor.carevl_asking == ASKING


@pytest.mark.parametrize(
    ("wording", "problem"),
    [
        ("[[A]]", "it has to name {verdict} once, and names it no times"),
        ("{verdict} > {verdict}", "names it 2 times"),
        ("**{verdict}**", "any letter would be a verdict"),
        (f"{'x' * 200} {{verdict}}", "at most 200 characters"),
    ],
)
def test_a_wording_of_verdicts_that_says_nothing_is_refused(wording, problem):
    with pytest.raises(ValidationError, match=problem):
        Asking(verdict=wording)


def test_reward_models_read_verdicts_in_the_judges_own_wording(family_directory, tmp_path):
    shutil.copytree(family_directory("qwen2_5_vl"), tmp_path / "judge")
    JudgeSpec(asking=Asking(verdict="[[{verdict}]]")).write(tmp_path / "judge")
    model = RewardModel(tmp_path / "judge", max_tokens=4, max_model_len=1024)
    engine: Any = model.engine

    def generate(requests, *, max_tokens, logprob_texts=()):
        del max_tokens
        surely = tuple(0.0 if text == "A" else -20.0 for text in logprob_texts)
        return [Generation("A cat. [[A]]", 4, False, (surely,)) for _ in requests]

    engine.generate = generate
    judgment = model.judge(PICTURE, "What?", ("A cat.", "A dog."))
    assert (judgment.status, judgment.consistent, judgment.evidence) == ("ok", False, "A cat.")
    assert judgment.probability == pytest.approx(0.5)
    four = (-20.0, -20.0, -20.0, 0.0, -20.0) * 2
    engine.generate = lambda requests, **_: [Generation("[[4]]", 4, False, (four,)) for _ in requests]
    assert model.score(PICTURE, "What?", "A cat.") == pytest.approx(4.0, abs=1e-6)


def test_a_wording_reaches_the_suites_of_benchmarks_but_for_their_own_protocol():
    row = Row("1", "pairwise", "", "What?", ("A cat.", "A dog."), (1.0, 0.0))
    asking = Asking(verdict="Winner: {verdict}")
    strict, official = (
        ask_as_trained(judge_question("vl-rewardbench", row, protocol, (1, 0)), row, asking)
        for protocol in ("strict", "official")
    )
    suite = SUITES["vl-rewardbench"]
    assert [suite.parse(question, "Winner: B").winner for question in (strict, official)] == [0, None]
    assert from_row(to_questions([strict]).to_pylist()[0]).wording == "Winner: {verdict}"


def test_questions_of_benchmarks_are_in_the_judges_words_but_for_the_benchmarks_own():
    row = Row("1", "pairwise", "", "What?", ("A cat.", "A dog."), (1.0, 0.0))
    strict, official = (judge_question("b", row, protocol, (1, 0)) for protocol in ("strict", "official"))
    assert ask_as_trained(strict, row, ASKING).prompt.startswith("Compare for: What?\nAnswer 1: A dog.")
    assert ask_as_trained(official, row, ASKING) == official
    assert ask_as_trained(strict, row, Asking(system="Be kind.")) == strict


def test_what_is_asked_is_part_of_the_fingerprints_where_the_settings_say_it():
    settings = load_settings("mini")
    other = load_settings("mini", ["judge.asking={system: You are strict.}"])
    for stage in (demonstrate, sft):
        before, after = (stage.fingerprint_inputs(each, FINISHED, "x") for each in (settings, other))
        assert "asking" not in json.dumps(before)
        assert after["judge"]["asking"] == {"system": "You are strict."}
