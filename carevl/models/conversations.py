"""What a text model reads: conversations as its own tokenizer writes them, and how long they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from carevl.errors import UserError
from carevl.judging.prompts import write_turns
from carevl.judging.turns import Turn
from carevl.models.control_strings import RestoringTokenizer, replace_control_strings
from carevl.models.prompts import check_tokenizer
from carevl.models.row_errors import TOO_LONG, Failure

Dialogue = str | tuple[Turn, ...]
"""What stands before a response: a user turn, or several turns of text, the last of them the user's."""
Conversation = tuple[Dialogue, str]
"""What is asked, and the response."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, and the type of each where the tokenizer tells two texts apart by type."""

    ids: Sequence[int]
    types: Sequence[int] | None = None


def messages_of(asked: Dialogue, response: str | None = None) -> list[dict[str, str]]:
    """Return turns as chat templates and services take them, with a response behind them if there is one."""
    turns = (Turn("user", asked),) if isinstance(asked, str) else asked
    replies = [] if response is None else [{"role": "assistant", "content": response}]
    return [*({"role": turn.role, "content": turn.text} for turn in turns), *replies]


def as_text(asked: Dialogue) -> str:
    """Return what is asked as one text: of several turns, with a name before each."""
    return asked if isinstance(asked, str) else write_turns(asked).text


def chat_conversation(tokenizer: Any, asked: Dialogue, response: str) -> str:
    """Return what is asked and the response to it, in a reward model's own chat template."""
    written: str = tokenizer.apply_chat_template(messages_of(asked, response), tokenize=False)
    return written


def encode(tokenizer: Any, conversations: Sequence[Conversation | Encoded]) -> list[Encoded]:
    """Encode as the chat template writes: it stands for all special tokens, so no second BOS is added.

    A tokenizer without a template gets what is asked and the response as a pair of texts, with its own special tokens.
    What is encoded already stays as it is. Control tokens that a text names are read as plain text.
    """
    fresh = iter(_encode(tokenizer, [text for text in conversations if not isinstance(text, Encoded)]))
    return [entry if isinstance(entry, Encoded) else next(fresh) for entry in conversations]


def _encode(tokenizer: Any, conversations: Sequence[Conversation]) -> list[Encoded]:
    if not conversations:
        return []
    # A slow tokenizer cannot tell where a control token stands in a text.
    guarded, strings = _guard(tokenizer, conversations) if tokenizer.is_fast else (list(conversations), {})
    reader = RestoringTokenizer(tokenizer, strings) if strings else tokenizer
    if tokenizer.chat_template:
        written = [chat_conversation(tokenizer, *pair) for pair in guarded]
        return [Encoded(ids) for ids in reader(written, add_special_tokens=False)["input_ids"]]
    pairs = reader([as_text(asked) for asked, _ in guarded], [response for _, response in guarded])
    types = pairs.get("token_type_ids") or [None] * len(conversations)
    return [Encoded(ids, kinds) for ids, kinds in zip(pairs["input_ids"], types, strict=True)]


def _guard(tokenizer: Any, conversations: Sequence[Conversation]) -> tuple[list[Conversation], dict[str, str]]:
    """Return conversations as `replace_control_strings` returns texts, and its strings."""
    texts = [text for asked, response in conversations for text in (*_texts(asked), response)]
    replaced, strings = replace_control_strings(tokenizer, texts)
    fresh = iter(replaced)
    return [(_with_texts(asked, fresh), next(fresh)) for asked, _ in conversations], strings


def _texts(asked: Dialogue) -> list[str]:
    return [asked] if isinstance(asked, str) else [turn.text for turn in asked]


def _with_texts(asked: Dialogue, texts: Iterator[str]) -> Dialogue:
    return next(texts) if isinstance(asked, str) else tuple(replace(turn, text=next(texts)) for turn in asked)


def check_chat(tokenizer: Any, path: str) -> None:
    """Check that a tokenizer writes turns, and tells which characters a token stands for.

    Raises:
        UserError: it has no chat template, or is a slow one.
    """
    check_tokenizer(tokenizer, path)
    if not tokenizer.chat_template:
        raise UserError(f"{path} has no chat template: choose a model that was tuned to follow instructions")


def encode_turns(tokenizer: Any, asked: Sequence[Dialogue]) -> list[list[int]]:
    """Return the token ids of what is asked up to where the reply begins; nothing that it says is a control token.

    Models that think before they reply are told not to, where their template knows `enable_thinking`.
    """
    guarded, strings = _guard(tokenizer, [(each, "") for each in asked])
    written = [
        tokenizer.apply_chat_template(
            messages_of(each), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for each, _ in guarded
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
