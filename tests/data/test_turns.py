"""Dialogues before two responses: kept whole, and refused where the two are not of one dialogue."""

from __future__ import annotations

from typing import Any

import pytest

from carevl.data.formats import FORMATS
from carevl.data.rows import Preference, RowError

ASKED, GOOD, BAD = "What is it?", "A cat.", "A dog."
TAGGED = ("rlaif-v", "rlhf-v", "spa-vl", "vlfeedback", "items", "mm-rlhf", "trl")


def user(text: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(name: str, row: dict[str, Any]) -> Preference:
    return FORMATS[name].read(row)


def error_of(name: str, row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as failure:
        read(name, row)
    return failure.value


def tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tagged(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tagged(inner) for inner in value]
    return (
        value.replace(ASKED, f"<image>\\n{ASKED}" if value.startswith("{") else f"<image>\n{ASKED}")
        if isinstance(value, str)
        else value
    )


@pytest.mark.parametrize("name", TAGGED)
def test_the_image_tag_is_taken_out_of_every_question(name: str) -> None:
    assert read(name, tagged(FORMATS[name].example)).question == ASKED


@pytest.mark.parametrize("name", ["llamafactory-alpaca", "llamafactory-sharegpt", "ms-swift"])
def test_system_and_history_become_part_of_the_question(name: str) -> None:
    row = FORMATS[name].example | {"system": "Be brief.", "history": [["Red?", "Yes."]]}
    assert read(name, row).question == f"System: Be brief.\nUser: Red?\nAssistant: Yes.\nUser: {ASKED}"
    assert read(name, FORMATS[name].example | {"system": "", "history": [], "tools": ""}).question == ASKED
    assert error_of(name, row | {"history": [["Red?"]]}).kind == "format"
    assert "`tools`" in error_of(name, row | {"tools": "[{}]"}).message


@pytest.mark.parametrize("name", ["llamafactory-alpaca", "ms-swift", "spa-vl", "trl"])
def test_images_of_the_rejected_response_are_refused_by_name(name: str) -> None:
    row = FORMATS[name].example
    assert error_of(name, row | {"rejected_images": ["b.png"]}).kind == "image_differs"
    assert error_of(name, row | {"videos": ["v.mp4"]}).kind == "image_several"
    for same in (["a.png"], [], None):
        assert read(name, row | {"rejected_images": same}).image == "a.png"


def test_conversations_beside_lists_of_turns_are_the_question() -> None:
    row = {
        "images": ["a.png"],
        "conversations": [{"from": "human", "value": f"<image>{ASKED}"}],
        "chosen": [assistant(GOOD)],
        "rejected": [assistant(BAD)],
    }
    assert read("llamafactory-sharegpt", row).question == ASKED
    more = [assistant(GOOD), user("Sure?"), assistant("Yes.")]
    assert error_of("llamafactory-sharegpt", row | {"chosen": more}).kind == "responses"
    both = row | {"chosen": more, "rejected": [*more[:2], assistant("No.")]}
    assert read("llamafactory-sharegpt", both).question == f"User: {ASKED}\nAssistant: {GOOD}\nUser: Sure?"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("trl", ("chosen", "rejected")),
        ("povid", ("conversations", "rejected_conversations")),
        ("ms-swift", ("messages", "rejected_messages")),
    ],
)
def test_responses_to_other_questions_are_no_pair(name: str, columns: tuple[str, str]) -> None:
    chosen, rejected = columns
    row: dict[str, Any] = {"images": ["a.png"], "image": "a.png", chosen: [user(ASKED), assistant(GOOD)]}
    assert error_of(name, row | {rejected: [user("Where?"), assistant(BAD)]}).kind == "responses"
    same = read(name, row | {rejected: [user(f"<image>\n{ASKED} "), assistant(BAD)]})
    assert (same.question, same.responses) == (ASKED, (GOOD, BAD))


def test_trl_repeats_its_prompt_or_does_not() -> None:
    row = {"images": ["a.png"], "prompt": [user(ASKED)]}
    for before in ([], [user(ASKED)], [user(f"<image>{ASKED}")]):
        pair = {"chosen": [*before, assistant(GOOD)], "rejected": [*before, assistant(BAD)]}
        assert read("trl", row | pair).question == ASKED
        assert read("trl", row | pair | {"prompt": ASKED}).question == ASKED


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
    ],
)
def test_images_may_stand_among_the_parts_of_a_turn(part: dict[str, Any]) -> None:
    row = {"prompt": [user(ASKED, part)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
    found = read("trl", row)
    assert (found.question, found.image) == (ASKED, "a.png")
    assert error_of("trl", row | {"prompt": [user(ASKED, part, part)]}).kind == "image_several"
    other = {"type": "image", "image": "b.png"}
    pair = {"chosen": [user(ASKED, part), assistant(GOOD)], "rejected": [user(ASKED, other), assistant(BAD)]}
    assert error_of("trl", pair).kind == "image_differs"


def test_an_arena_knows_ties_and_refuses_other_earlier_answers() -> None:
    row = FORMATS["arena"].example
    assert read("arena", row | {"winner": "tie (bothbad)"}).preference == (0.5, 0.5)
    assert error_of("arena", row | {"winner": "both"}).kind == "preference"
    longer = {
        f"conversation_{side}": [user(ASKED), assistant(text), user("Sure?"), assistant(f"{text} Yes.")]
        for side, text in (("a", GOOD), ("b", BAD))
    }
    assert error_of("arena", row | longer).kind == "responses"


def test_openai_tools_are_refused() -> None:
    row = FORMATS["openai"].example
    assert "tools" in error_of("openai", row | {"input": row["input"] | {"tools": [{}]}}).message
