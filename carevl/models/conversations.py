"""What a text model reads: conversations as its own tokenizer writes them, and how long they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carevl.errors import UserError
from carevl.models.control_strings import RestoringTokenizer, replace_control_strings
from carevl.models.prompts import check_tokenizer
from carevl.models.row_errors import TOO_LONG, Failure

Conversation = tuple[str, str]
"""User turn and response."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, and the type of each where the tokenizer tells two texts apart by type."""

    ids: Sequence[int]
    types: Sequence[int] | None = None


def chat_conversation(tokenizer: Any, user: str, response: str) -> str:
    """Return a user turn and the response to it, in a reward model's own chat template."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
    written: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return written


def encode(tokenizer: Any, conversations: Sequence[Conversation | Encoded]) -> list[Encoded]:
    """Encode as the chat template writes: it stands for all special tokens, so no second BOS is added.

    A tokenizer without a template gets user turn and response as a pair of texts, with its own special tokens. What is
    encoded already stays as it is. Control tokens that a text names are read as plain text.
    """
    fresh = iter(_encode(tokenizer, [text for text in conversations if not isinstance(text, Encoded)]))
    return [entry if isinstance(entry, Encoded) else next(fresh) for entry in conversations]


def _encode(tokenizer: Any, conversations: Sequence[Conversation]) -> list[Encoded]:
    if not conversations:
        return []
    # A slow tokenizer cannot tell where a control token stands in a text.
    texts = [text for conversation in conversations for text in conversation]
    texts, strings = replace_control_strings(tokenizer, texts) if tokenizer.is_fast else (texts, {})
    reader = RestoringTokenizer(tokenizer, strings) if strings else tokenizer
    users, responses = texts[::2], texts[1::2]
    if tokenizer.chat_template:
        written = [chat_conversation(tokenizer, *pair) for pair in zip(users, responses, strict=True)]
        return [Encoded(ids) for ids in reader(written, add_special_tokens=False)["input_ids"]]
    pairs = reader(users, responses)
    types = pairs.get("token_type_ids") or [None] * len(conversations)
    return [Encoded(ids, kinds) for ids, kinds in zip(pairs["input_ids"], types, strict=True)]


def check_chat(tokenizer: Any, path: str) -> None:
    """Check that a tokenizer writes turns, and tells which characters a token stands for.

    Raises:
        UserError: it has no chat template, or is a slow one.
    """
    check_tokenizer(tokenizer, path)
    if not tokenizer.chat_template:
        raise UserError(f"{path} has no chat template: choose a model that was tuned to follow instructions")


def encode_turns(tokenizer: Any, users: Sequence[str]) -> list[list[int]]:
    """Return the token ids of user turns up to where the reply begins; nothing that they say is a control token.

    Models that think before they reply are told not to, where their template knows `enable_thinking`.
    """
    texts, strings = replace_control_strings(tokenizer, users)
    written = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for text in texts
    ]
    reader = RestoringTokenizer(tokenizer, strings) if strings else tokenizer
    ids: list[list[int]] = reader(written, add_special_tokens=False)["input_ids"]
    return ids


def too_long(encoded: Sequence[Encoded], limit: int) -> Mapping[int, Failure]:
    """Return the conversations of more than `limit` tokens, by position: they are refused, never cut."""
    return {
        i: Failure(
            TOO_LONG,
            f"{len(tokens.ids)} tokens, and the expert reads {limit}; raise its max_model_len if the model allows it, "
            "set its too_long to summarise, or let the captioner write less",
        )
        for i, tokens in enumerate(encoded)
        if len(tokens.ids) > limit
    }
