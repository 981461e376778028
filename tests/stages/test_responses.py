"""What models answered becomes the responses of items."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from carevl.data.answers import words_of
from carevl.data.intake import item_id, merge_items
from carevl.settings.respond import Respond
from carevl.stages.responses import Answer, Draw, complete, exchange, read_answers, with_gold
from carevl.store.schemas import ALIKE

QUESTION = "How many circles are there?"
RESPOND = Respond.model_validate({"models": [{"name": "one", "path": "miniworld:judge"}]})


def _item(**changes: Any) -> dict[str, Any]:
    source = {"source": "photos", "format": "question", "locator": "0", "preference": None, "extra": "{}"}
    item = {"images": ["i"], "places": [0], "turns": [], "question": QUESTION, "responses": [], "gold": None}
    return item | {"item_id": "q", "sources": [source], "source_preference": None, "error": None} | changes


def _rows(*texts: str | None, view: str = "image", model: str = "one") -> list[dict[str, Any]]:
    of_row = {"item_id": "q", "model": model, "view": view, "prompt": "{question}", "truncated": False}
    error = {"stage": "respond", "kind": "engine", "message": "lost"}
    return [
        of_row | {"sample": n, "text": text, "error": error if text is None else None} for n, text in enumerate(texts)
    ]


def _answer(text: str, name: str = "q") -> Answer:
    return Answer(text, words_of(text), [Draw("other", "one", "{question}", 0, name)])


def test_equal_answers_are_one_response_with_all_who_wrote_it():
    rows = [*_rows("Two.", "2", "Three."), *_rows("two", model="another")]
    item, writers = complete(_item(), read_answers(_item(), rows, RESPOND), None, RESPOND)
    assert set(item["responses"]) == {"Two.", "Three."}
    assert item["item_id"] == item_id(["i"], [0], [], QUESTION, item["responses"])
    two = item["responses"].index("Two.")
    wrote = [(row["model"], row["sample"]) for row in writers if row["response"] == two]
    assert wrote == [("one", 0), ("one", 1), ("another", 0)]
    assert {row["item_id"] for row in writers} == {item["item_id"]}
    assert {row["question"] for row in writers} == {"q"}


def test_those_of_most_draws_are_kept():
    rows = _rows("One.", "Two.", "Two.", "Three.", "Three.", "Four.", "Five.")
    respond = RESPOND.model_copy(update={"max_responses": 2})
    item, _ = complete(_item(), read_answers(_item(), rows, respond), None, respond)
    assert set(item["responses"]) == {"Two.", "Three."}


def test_answers_that_are_all_alike_set_the_question_aside_with_a_reason():
    item, writers = complete(_item(), read_answers(_item(), _rows("Two.", "2"), RESPOND), None, RESPOND)
    assert item["error"]["kind"] == ALIKE
    assert "all answers say 'Two.'" in item["error"]["message"]
    assert (item["responses"], writers) == ([], [])


def test_faulty_answers_are_left_out_or_make_an_error_of_the_item():
    rows = _rows("Two.", "Three.", "I'm sorry, I cannot help.", "", None)
    answered = read_answers(_item(), rows, RESPOND)
    assert answered.faults == Counter(refusal=1, empty=1, failed=1)
    item, _ = complete(_item(), answered, None, RESPOND)
    assert len(item["responses"]) == 2
    strict = RESPOND.model_copy(update={"faulty": "error"})
    item, _ = complete(_item(), answered, None, strict)
    assert item["error"]["message"].startswith("answers that cannot be used: 1 empty, 1 failed, 1 refusal")


def test_a_question_with_faulty_answers_alone_is_an_error():
    item, _ = complete(_item(), read_answers(_item(), _rows("", ""), RESPOND), None, RESPOND)
    assert item["error"]["kind"] == "responses"
    assert "2 empty" in item["error"]["message"]


def test_thinking_is_no_part_of_an_answer():
    answered = read_answers(_item(), _rows("<think>One? No, two.</think>\nTwo."), RESPOND)
    assert [answer.text for answer in answered.answers] == ["Two."]


def test_what_should_be_wrong_gives_a_question_whose_answers_are_alike_something_to_compare():
    item, writers = complete(
        _item(), read_answers(_item(), _rows("Two.", "2"), RESPOND), _answer("Four.", "p"), RESPOND
    )
    assert set(item["responses"]) == {"Two.", "Four."}
    [other] = [row for row in writers if row["kind"] == "other"]
    assert item["responses"][other["response"]] == "Four."
    assert other["question"] == "p"


def test_what_should_be_wrong_takes_the_last_place_and_stands_once():
    respond = RESPOND.model_copy(update={"max_responses": 2})
    rows = _rows("Two.", "Two.", "Three.")
    item, _ = complete(_item(), read_answers(_item(), rows, respond), _answer("Four."), respond)
    assert set(item["responses"]) == {"Two.", "Four."}
    item, _ = complete(_item(), read_answers(_item(), rows, respond), _answer("three"), respond)
    assert set(item["responses"]) == {"Two.", "Three."}


def test_texts_of_a_function_of_the_settings_are_responses_unless_they_are_there():
    item, writers = complete(_item(), read_answers(_item(), _rows("Two."), RESPOND), None, RESPOND, ["Nine.", "2", " "])
    assert set(item["responses"]) == {"Two.", "Nine."}
    assert [row["kind"] for row in writers if row["model"] is None] == ["own"]


def test_answers_about_an_image_that_was_not_seen_come_in_the_order_of_the_kinds():
    respond = Respond.model_validate(
        {"models": [{"name": "one", "path": "p"}], "negatives": {"share": 1, "kinds": ["blank", "blurred"]}}
    )
    rows = [*_rows("Two."), *_rows("Five.", view="blurred"), *_rows("Six.", "", view="blank")]
    answered = read_answers(_item(), rows, respond)
    assert [answer.text for answer in answered.unseen] == ["Six.", "Five."]
    assert not answered.faults  # those of what was not seen say nothing of the question


def test_answers_are_exchanged_so_that_each_text_is_wrong_as_often_as_it_is_given():
    texts = ["Two."] * 5 + ["Three."] * 3 + ["Four."] * 2 + ["Five."]
    own = {f"item-{n}": _answer(text) for n, text in enumerate(texts)}
    handed = exchange(own, seed=3)
    assert set(handed) == set(own)
    assert all(handed[name].words != own[name].words for name in handed)
    assert Counter(each.text for each in handed.values()) == Counter(own[name].text for name in handed)


def test_an_answer_that_most_share_is_exchanged_by_as_many_as_there_are_others():
    own = {f"item-{n}": _answer(text) for n, text in enumerate(["Two."] * 9 + ["Three."] * 2)}
    handed = exchange(own, seed=3)
    assert Counter(each.text for each in handed.values()) == {"Two.": 2, "Three.": 2}
    assert all(handed[name].words != own[name].words for name in handed)
    assert exchange({name: each for name, each in own.items() if each.text == "Two."}, seed=3) == {}


def test_a_labelled_sources_answer_labels_the_responses():
    extra = json.dumps({"answer": "2"})
    labelled = _item(sources=[{"source": "vqa", "extra": extra}], responses=["Three circles.", "There are two."])
    assert with_gold(labelled, {"vqa"})["gold"] == [0.0, 1.0]
    assert with_gold(labelled, set())["gold"] is None


def test_an_item_that_a_source_has_with_these_responses_keeps_both_sources_and_what_either_knows():
    asked, _ = complete(_item(), read_answers(_item(), _rows("Two.", "Three."), RESPOND), None, RESPOND)
    stored = asked | {
        "sources": [{"source": "pairs", "locator": "3", "preference": [1.0, 0.0]}],
        "source_preference": [1.0, 0.0],
    }
    for both in ((asked, stored), (stored, asked)):
        [joined] = merge_items(both)
        assert [source["source"] for source in joined["sources"]] == ["pairs", "photos"]
        assert joined["source_preference"] == [1.0, 0.0]
        assert joined["item_id"] == asked["item_id"]


def test_texts_hold_nothing_that_no_table_takes():
    item, _ = complete(_item(), read_answers(_item(), _rows("Two\x00."), RESPOND), None, RESPOND, ["Nine\ud800."])
    assert set(item["responses"]) == {"Two\ufffd.", "Nine\ufffd."}
