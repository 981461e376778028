"""A chat completion, in any shape that an endpoint gives it, as a judge's answer or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from carevl.benchmarks.answering import Answer
from carevl.data.rows import clean, kind_of
from carevl.models.engines.base import Generation

_CUT = ("length", "max_tokens")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class _NotFiniteError(ValueError):
    """A log-probability that is NaN or infinite."""


def read_completion(reply: object, max_tokens: int, logprob_texts: Sequence[str] = ()) -> Answer:
    """Return the text of the first choice, or why it has none.

    A refusal is a text like any other. Thoughts that stand apart from the text are kept apart. An answer that does not
    say why it ended was cut if it is as long as it may be.

    Args:
        reply: the JSON of an answer with status 200.
        max_tokens: longest answer that was asked for.
        logprob_texts: texts whose log-probabilities were asked for.
    """
    match reply:
        case {"choices": [{"message": dict(message)} as choice, *_]}:
            pass
        case {"error": error} if error:
            return f"an error in place of a completion: {_shown(error)}"
        case {"choices": []}:
            return "a completion without choices"
        case _:
            return f"not a chat completion: a {kind_of(reply)} {_names(reply)}".rstrip()
    text, finish = _text(message.get("content")), choice.get("finish_reason")
    thoughts = [_text(message.get(name)) for name in _THOUGHTS] + [_part_thoughts(message.get("content"))]
    reasoning = next((thought for thought in thoughts if thought), None)
    if not text:
        text = _text(message.get("refusal"))
    if not text and (reason := _empty(message, finish)):
        return reason
    tokens = _completion_tokens(reply)
    truncated = tokens >= max_tokens if finish is None else str(finish).lower() in _CUT
    try:
        logprobs = _logprobs(choice.get("logprobs"), logprob_texts)[:max_tokens] if logprob_texts else ()
    except _NotFiniteError as error:
        return f"a completion with {error} for a log-probability"
    return Generation(clean(text), tokens, truncated, logprobs, clean(reasoning) if reasoning else None)


def _text(content: object) -> str:
    """Return the text of a content: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    return content if isinstance(content, str) else ""


def _part(part: object) -> str:
    match part:
        case str():
            return part
        case {"text": str(text)}:
            return text
        case _:
            return ""


def _part_thoughts(content: object) -> str:
    """Return the thoughts among the parts of a content."""
    parts = content if isinstance(content, list) else []
    return "".join(_text(part.get("thinking")) for part in parts if isinstance(part, dict))


def _empty(message: Mapping[str, Any], finish: object) -> str:
    """Return why a message has no text; empty where it does not tell."""
    if called := _called(message):
        return f"a call of the tool {called} in place of an answer"
    return "withheld by the endpoint's content filter" if finish == "content_filter" else ""


def _called(message: Mapping[str, Any]) -> str:
    """Return the name of the tool that a message calls; empty if it calls none."""
    match message:
        case {"tool_calls": [{"function": {"name": name}}, *_]} | {"function_call": {"name": name}}:
            return _shown(name)
        case {"tool_calls": [_, *_]}:
            return "without a name"
        case _:
            return ""


def _completion_tokens(reply: object) -> int:
    """Return the number of tokens that were generated; 0 where that is not told."""
    match reply:
        case {"usage": {"completion_tokens": int(tokens)}}:
            return tokens
        case _:
            return 0


def prompt_tokens(reply: object) -> int | None:
    """Return the number of tokens of the prompt; None where that is not told."""
    match reply:
        case {"usage": {"prompt_tokens": int(tokens)}}:
            return tokens
        case _:
            return None


def _logprobs(found: object, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Return the log-probability of each text at each token; a text not among the likeliest is impossible.

    There are none where any token has none: they could not be told apart then.
    """
    match found:
        case {"content": [_, *_] as tokens}:
            read = [_likeliest(token) for token in tokens]
            return tuple(tuple(token.get(text, -math.inf) for text in texts) for token in read) if all(read) else ()
        case _:
            return ()


def _likeliest(token: object) -> dict[str, float]:
    """Return the likeliest texts at a token; of several tokens of one text the likeliest."""
    likeliest: dict[str, float] = {}
    match token:
        case {"top_logprobs": list(entries)}:
            for entry in entries:
                match entry:
                    case {"token": str(), "logprob": float() as logprob} if math.isnan(logprob) or logprob == math.inf:
                        raise _NotFiniteError(logprob)
                    case {"token": str(text), "logprob": int() | float() as logprob} if logprob <= 0.01:
                        likeliest[text] = max(float(logprob), likeliest.get(text, -math.inf))
    return likeliest


def _names(reply: object) -> str:
    return f"with {_shown(', '.join(reply))}" if isinstance(reply, dict) and reply else ""


def _shown(value: object) -> str:
    """Return a value that the endpoint sent in one line of text; what is no text by its kind."""
    text = value.get("message") if isinstance(value, dict) else value
    return " ".join(clean(text).split()) if isinstance(text, str) else f"a {kind_of(value)}"
