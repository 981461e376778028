"""The prompt of a conversation up to the token where its response begins: what a gate reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carevl.errors import UserError
from carevl.models.conversations import Encoded


def response_header(tokenizer: Any) -> list[int]:
    """Return the tokens with which a chat template opens a response.

    Raises:
        UserError: the template opens it with nothing.
    """
    messages = [{"role": "user", "content": "?"}]
    asked, opened = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens) for opens in (False, True)
    )
    header: list[int] = tokenizer(opened.removeprefix(asked), add_special_tokens=False)["input_ids"]
    if not header:
        raise UserError(
            f"{tokenizer.name_or_path}: its head reads the token where a response begins, and its chat template opens "
            "responses with nothing (add_generation_prompt); give it the model's own chat_template.jinja"
        )
    return header


def with_prompts(texts: Sequence[Encoded], header: Sequence[int]) -> list[Encoded]:
    """Return every conversation behind its beginning, which ends with the first token of its last header.

    A causal model's state there is that of the conversation itself at this token.

    Raises:
        ValueError: a conversation lacks the header.
    """
    return [each for text in texts for each in (Encoded(text.ids[: _find_last(header, text.ids) + 1]), text)]


def _find_last(header: Sequence[int], ids: Sequence[int]) -> int:
    n = len(header)
    for start in range(len(ids) - n, -1, -1):
        if list(ids[start : start + n]) == list(header):
            return start
    raise ValueError("a conversation lacks the tokens that open its response")
