"""Answers of endpoints in the shapes that they come in: each is a text or a reason, and none is an exception."""

from __future__ import annotations

import itertools
import math

import pytest

from carevl.benchmarks.completion import read_completion
from carevl.models.engines.base import Generation


def _completion(message, finish="stop", **more):
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {"completion_tokens": 3}, **more}


def _parts(*parts):
    return {"content": [{"type": "text", "text": part} for part in parts]}


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "Two."}, "Two.", None),
        ({"content": None}, "", None),
        ({}, "", None),
        (_parts("Two", " cups."), "Two cups.", None),
        ({"content": ["Two", {"type": "image"}, {"text": " cups."}, 7]}, "Two cups.", None),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help.", None),
        ({"content": "Two.", "refusal": "no"}, "Two.", None),
        ({"content": "Two.", "reasoning_content": "One, two."}, "Two.", "One, two."),
        ({"content": "Two.", "reasoning_content": None, "reasoning": "One, two."}, "Two.", "One, two."),
        ({"content": None, "reasoning": "One, two."}, "", "One, two."),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "One"}]}, {"text": "Two."}]},
            "Two.",
            "One",
        ),
        ({"content": "Two.", "tool_calls": []}, "Two.", None),
        ({"content": "a\ud800b\0", "reasoning": "\udfff"}, "a\ufffdb\ufffd", "\ufffd"),
        ({"content": 4}, "", None),
    ],
)
def test_a_text_is_read_in_any_shape_and_thoughts_are_kept_apart(message, text, reasoning):
    assert read_completion(_completion(message), 64) == Generation(text, 3, False, (), reasoning)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "not a chat completion: a null"),
        ("hello", "not a chat completion: a text"),
        ({"choices": None, "id": 1}, "not a chat completion: a struct with choices, id"),
        ({"choices": [{"text": "Two."}]}, "not a chat completion: a struct with choices"),
        ({"choices": [{"message": "Two."}]}, "not a chat completion: a struct with choices"),
        ({"choices": [], "error": {"message": "down"}}, "an error in place of a completion: down"),
        ({"error": ["?"]}, "an error in place of a completion: a list"),
        ({"choices": []}, "a completion without choices"),
        (
            _completion({"content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}),
            "a call of the tool look in place of an answer",
        ),
        (
            _completion({"content": "", "function_call": {"name": "look"}}),
            "a call of the tool look in place of an answer",
        ),
        (_completion({"tool_calls": [None]}), "a call of the tool without a name in place of an answer"),
        (_completion({"content": None}, "content_filter"), "withheld by the endpoint's content filter"),
    ],
)
def test_a_reply_without_an_answer_says_what_it_is(reply, reason):
    assert read_completion(reply, 64) == reason


def test_the_first_of_several_choices_is_read():
    reply = _completion({"content": "first"})
    reply["choices"].append({"message": {"content": "second"}})
    assert read_completion(reply, 64).text == "first"


@pytest.mark.parametrize(
    ("finish", "max_tokens", "truncated"),
    [("length", 64, True), ("MAX_TOKENS", 64, True), ("stop", 3, False), (None, 64, False), (None, 3, True)],
)
def test_an_answer_that_was_cut_is_known_even_where_it_does_not_say_so(finish, max_tokens, truncated):
    assert read_completion(_completion({"content": "a"}, finish), max_tokens).truncated is truncated
    reply = _completion({"content": "a"}, finish)
    if finish is None:
        del reply["choices"][0]["finish_reason"]
        assert read_completion(reply, max_tokens).truncated is truncated


def _with_logprobs(content):
    reply = _completion({"content": "1"})
    reply["choices"][0]["logprobs"] = content
    return read_completion(reply, 64, ("1", "2")).logprobs


def test_the_likeliest_of_tokens_with_one_text_counts():
    likeliest = [{"token": "1", "logprob": -0.5}, {"token": "1", "logprob": -3}, {"token": "2", "logprob": -math.inf}]
    assert _with_logprobs({"content": [{"top_logprobs": likeliest}]}) == ((-0.5, -math.inf),)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_probability_that_is_no_number_is_no_answer(value):
    reply = _completion({"content": "1"})
    reply["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{"token": "2", "logprob": value}]}]}
    assert read_completion(reply, 64, ("1", "2")) == f"a completion with {value} for a log-probability"


@pytest.mark.parametrize(
    "logprobs",
    [None, [], {}, {"content": None}, {"content": []}, {"content": [{}]}, {"content": [{"top_logprobs": [{}]}]}],
)
def test_log_probabilities_of_another_shape_are_none(logprobs):
    assert _with_logprobs(logprobs) == ()


_ODD = [None, 0, -1.5, True, "", "x", [], [None], {}, {"a": 1}, float("nan"), "1" * 5000]


def test_no_shape_of_any_field_is_an_exception():
    def replaced(node, path, value):
        if not path:
            return value
        copy = dict(node) if isinstance(node, dict) else list(node)
        copy[path[0]] = replaced(node[path[0]], path[1:], value)
        return copy

    entry = {"token": "1", "logprob": -0.1}
    message = {"content": "a", "refusal": None, "reasoning": "b", "tool_calls": [{"function": {"name": "f"}}]}
    reply = _completion(message, error=None)
    reply["choices"][0]["logprobs"] = {"content": [{"token": "1", "top_logprobs": [entry]}]}
    paths = [("choices",), ("choices", 0), ("error",), ("usage",), ("usage", "completion_tokens")]
    paths += [("choices", 0, *path) for path in [("message",), ("finish_reason",), ("logprobs",)]]
    paths += [("choices", 0, "message", name) for name in message]
    paths += [("choices", 0, "message", "tool_calls", 0, "function", "name")]
    top = ("choices", 0, "logprobs", "content")
    paths += [top, (*top, 0), (*top, 0, "top_logprobs"), (*top, 0, "top_logprobs", 0)]
    paths += [(*top, 0, "top_logprobs", 0, name) for name in entry]
    answers = [
        read_completion(replaced(reply, path, value), 64, ("1",)) for path, value in itertools.product(paths, _ODD)
    ]
    assert all(isinstance(answer, str | Generation) for answer in answers)
    assert {type(answer) for answer in answers} == {str, Generation}
