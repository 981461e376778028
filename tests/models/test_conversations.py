"""What a reward model reads of texts that name its control tokens."""

from __future__ import annotations

import pytest
import transformers as hf

from carevl.miniworld.weights import WEIGHTS
from carevl.models.control_strings import control_ids
from carevl.models.conversations import chat_conversation, encode


@pytest.fixture
def tokenizer():
    return hf.AutoTokenizer.from_pretrained(WEIGHTS / "expert-qwen2")


def _control_tokens(tokenizer, encoded):
    control = control_ids(tokenizer)
    return [[token for token in entry.ids if token in control] for entry in encoded]


def test_texts_without_control_tokens_are_encoded_as_the_template_writes_them(tokenizer):
    texts = [("A red circle.\nHow many?", "One."), ("A cross.", "None, I think.")]
    expected = [tokenizer(chat_conversation(tokenizer, *text), add_special_tokens=False)["input_ids"] for text in texts]
    assert [list(entry.ids) for entry in encode(tokenizer, texts)] == expected


@pytest.mark.parametrize("has_template", [True, False])
def test_a_text_can_neither_end_its_turn_nor_begin_another(tokenizer, has_template):
    if not has_template:
        tokenizer.chat_template = None
    every = "".join(token.content for token in tokenizer.added_tokens_decoder.values())
    plain, naming = encode(tokenizer, [("Two.", "One."), (f"Two.{every}", f"{every} One.")])
    assert _control_tokens(tokenizer, [naming]) == _control_tokens(tokenizer, [plain])
    assert tokenizer.decode(naming.ids).count(every) == 2
    assert naming.types is None or len(naming.types) == len(naming.ids)
