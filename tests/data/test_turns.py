"""Dialogues before two responses: kept whole, and refused where the two are not of one dialogue."""

from __future__ import annotations

from typing import Any

import pytest

from carevl.data.formats import FORMATS
from carevl.data.rows import Preference, RowError, VideoReference
from carevl.data.turns import take_tags
from carevl.judging.turns import Turn

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
def test_history_is_turns_and_the_system_speaks_before_the_user(name: str) -> None:
    row = FORMATS[name].example | {"system": "Be brief.", "history": [["Red?", "Yes."]]}
    found = read(name, row)
    assert (found.question, found.places) == (ASKED, (0,))
    assert found.turns == (Turn("user", "Be brief.\n\nRed?"), Turn("assistant", "Yes."))
    assert read(name, FORMATS[name].example | {"system": "Be brief."}).question == f"Be brief.\n\n{ASKED}"
    assert read(name, FORMATS[name].example | {"system": "", "history": [], "tools": ""}).question == ASKED
    assert error_of(name, row | {"history": [["Red?"]]}).kind == "format"
    assert "`tools`" in error_of(name, row | {"tools": "[{}]"}).message


@pytest.mark.parametrize("name", ["llamafactory-alpaca", "ms-swift", "spa-vl", "trl"])
def test_images_of_the_rejected_response_are_refused_by_name(name: str) -> None:
    row = FORMATS[name].example
    assert error_of(name, row | {"rejected_images": ["b.png"]}).kind == "image_differs"
    assert error_of(name, row | {"rejected_videos": ["v.mp4"]}).kind == "image_differs"
    assert error_of(name, row | {"audios": ["a.wav"]}).kind == "media"
    for same in (["a.png"], [], None):
        assert read(name, row | {"rejected_images": same}).references == ("a.png",)


def ask(text: str, **media: object) -> dict[str, Any]:
    return {"messages": [user(text), assistant(GOOD)], "rejected_response": BAD, **media}


def test_images_and_videos_stand_where_their_own_tags_are() -> None:
    both = {"images": ["a.png", "b.png"], "videos": ["v.mp4"]}
    a, b, v = "a.png", "b.png", VideoReference("v.mp4")
    found = read("ms-swift", ask("<image>Is <video> after <image>?", **both))
    assert (found.question, found.places, found.references) == ("Is  after ?", (0, 3, 10), (a, v, b))
    found = read("ms-swift", ask(ASKED, **both))
    assert (found.question, found.places, found.references) == (ASKED, (0, 0, 0), (a, b, v))
    found = read("ms-swift", ask("Is it <image>?", videos=["v.mp4"]))
    assert (found.question, found.places, found.references) == ("Is it ?", (6,), (v,))
    parts = [{"type": "video", "video": "v.mp4"}, {"type": "image", "image": "a.png"}]
    found = read("ms-swift", {"messages": [user(ASKED, *parts), assistant(GOOD)], "rejected_response": BAD})
    assert (found.question, found.places, found.references) == (ASKED, (0, 0), (v, a))


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("<video>?", {"videos": ["v.mp4", "w.mp4"]}, "1 <video> tags, and the row has 2 videos"),
        ("<video><video>?", {"videos": ["v.mp4"]}, "2 <video> tags, and the row has 1 video"),
        ("<video>?", {"images": ["a.png"], "videos": ["v.mp4"]}, "0 <image> tags, and the row has 1 image"),
        ("<image><video>?", {"videos": ["v.mp4"]}, "1 <image> tags, and the row has 0 images"),
        ("<image><video>?", {"images": ["a.png"], "videos": []}, "1 <video> tags, and the row has 0 videos"),
    ],
)
def test_another_number_of_tags_than_of_videos_is_an_error(text: str, media: dict[str, Any], message: str) -> None:
    error = error_of("ms-swift", ask(text, **media))
    assert (error.kind, message in error.message) == ("image_places", True), error.message


def test_the_tag_of_videos_is_a_word_where_a_row_can_have_none() -> None:
    question = "What does <video> do in HTML?"
    assert read("ms-swift", ask(question, images=["a.png"])).question == question


def test_a_part_that_is_a_video_needs_its_reference_and_a_sound_is_an_error() -> None:
    row = {"chosen": [user(ASKED, {"type": "video"}), assistant(GOOD)], "rejected": [user(ASKED), assistant(BAD)]}
    assert read("trl", row).references == (VideoReference(None),)
    assert read("trl", row | {"videos": ["v.mp4"]}).references == (VideoReference("v.mp4"),)
    row["chosen"][0] = user(ASKED, {"type": "input_audio", "input_audio": {"data": ""}})
    assert error_of("trl", row).kind == "media"


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
    found = read("llamafactory-sharegpt", both)
    assert (found.question, found.turns) == ("Sure?", (Turn("user", ASKED, (0,)), Turn("assistant", GOOD)))


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
    assert (found.question, found.places, found.references) == (ASKED, (0,), ("a.png",))
    found = read("trl", row | {"prompt": [user(ASKED, part, part)]})
    assert (found.question, found.places, found.references) == (ASKED, (0, 0), ("a.png", "a.png"))
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


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {
        "images": ["a.png"],
        "prompt": [{"role": role, "content": text} for role, text in turns],
        "chosen": [assistant(GOOD)],
        "rejected": [assistant(BAD)],
    }


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([("user", ASKED), ("user", "Well?")], "turns 1 and 2 are both the user's"),
        ([("user", ASKED), ("assistant", GOOD), ("assistant", BAD), ("user", "?")], "turns 2 and 3"),
        ([("user", ASKED), ("assistant", "It is")], "the last turn before the responses is the assistant's"),
        ([("assistant", "Hello."), ("user", ASKED)], "the first turn is the assistant's"),
        ([("user", ASKED), ("tool", "4")], "a turn of a tool (tool)"),
    ],
)
def test_turns_that_no_template_takes_are_errors_with_a_name(turns: list[tuple[str, str]], said: str) -> None:
    error = error_of("trl", talk(*turns))
    assert error.kind == "turns"
    assert said in error.message


@pytest.mark.parametrize(
    ("text", "words", "places"),
    [
        ("What?", "What?", ()),
        ("<image>\nWhat?", "What?", (0,)),
        ("What?\n<image>", "What?", (5,)),
        ("One\n<image>\ntwo", "One\ntwo", (4,)),
        ("Is <image> like <image>?", "Is  like ?", (3, 9)),
        ("  <image><image> Which? ", "Which?", (0, 0)),
        ("<image>", "", (0,)),
    ],
)
def test_tags_are_taken_out_and_their_places_kept(text: str, words: str, places: tuple[int, ...]) -> None:
    assert take_tags(text) == (words, places)


def test_the_image_of_a_single_turn_stands_before_it_whichever_end_its_tag_is_at() -> None:
    for text in (f"<image>\n{ASKED}", f"{ASKED}\n<image>", f"{ASKED} <image>"):
        assert (read("trl", talk(("user", text))).question, read("trl", talk(("user", text))).places) == (ASKED, (0,))
    assert read("trl", talk(("user", "Is <image> a cat?"))).places == (3,)


def test_a_row_is_about_text_alone_where_it_says_so() -> None:
    row = talk(("user", ASKED))
    assert read("trl", row | {"images": []}).references == ()
    assert read("trl", {name: value for name, value in row.items() if name != "images"}).references == ()
    assert read("trl", row | {"images": None}).references == (None,)
    assert read("trl", row | {"images": None}).without_missing_image().references == ()
    tagged_row = talk(("user", f"<image>{ASKED}")) | {"images": None}
    assert read("trl", tagged_row).without_missing_image().references == (None,)
    assert read("spa-vl", {"image": None, "question": ASKED, "chosen": GOOD, "rejected": BAD}).references == (None,)
