"""Captioner and judge in engines that fail: one image or prompt carries the error, the others their text."""

import io

import pyarrow as pa
import pytest
from PIL import Image

from carevl.errors import UserError
from carevl.judging.counts import VerdictCounts
from carevl.models.engines.base import Generation
from carevl.settings.asking import Asking
from carevl.settings.loader import load_settings
from carevl.stages import caption, demonstrate, sample, sampling, select
from carevl.store.schemas import CAPTIONS, IMAGES, ITEMS, JUDGMENTS
from tests.helpers.items import NO_LOANS, about

SETTINGS = load_settings("mini")


class Engine:
    """Writes a fixed text, but dies of black images; it holds `room` requests at a time."""

    def __init__(self, text, room=100):
        self.text, self.room, self.calls = text, room, []

    def generate(self, requests, *, max_tokens, temperature=0.0, logprob_texts=()):
        self.calls.append(len(requests))
        if len(requests) > self.room:
            raise MemoryError
        if any(request.images[0].getpixel((0, 0)) == (0, 0, 0) for request in requests):
            raise RuntimeError("no kernel for this image")
        return [Generation(self.text, 4, False) for _ in requests]

    def reduce_batch_size(self):
        self.room *= 2
        return True


def image(number):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, number, number)).save(file, "PNG")
    return {"image_id": str(number), "bytes": file.getvalue(), "error": None}


@pytest.fixture
def engine(monkeypatch):
    made = Engine("Overall Judgment: Answer 1 is better.")
    for module in (caption, sampling):
        monkeypatch.setattr(module, "generator", lambda model: made)
    return made


def test_one_image_that_kills_the_captioner_is_an_error_of_its_row(engine):
    images = pa.Table.from_pylist([image(n) for n in (3, 0, 1, 2)], IMAGES)
    made = caption.CaptionProcessor(SETTINGS.captioner).load().process({"images": images})
    assert made.schema == CAPTIONS
    rows = {row["image_id"]: row for row in made.to_pylist()}
    assert {key for key, row in rows.items() if row["error"]} == {"0"}
    assert rows["0"]["text"] is None
    assert rows["0"]["error"]["message"] == "RuntimeError: no kernel for this image"
    assert rows["1"]["text"] == engine.text


def test_a_captioner_without_memory_is_relieved_first(engine):
    engine.room = 1
    images = pa.Table.from_pylist([image(n) for n in (1, 2, 3)], IMAGES)
    made = caption.CaptionProcessor(SETTINGS.captioner).load().process({"images": images})
    assert made["error"].null_count == 3
    assert engine.calls == [3, 3, 3]


def test_prompts_that_kill_the_judge_are_errors_that_no_pair_is_made_of(engine):
    items = pa.Table.from_pylist(
        [{"item_id": key, **about(key), "question": "Which?", "responses": ["This.", "That."]} for key in ("0", "1")],
        ITEMS,
    )
    routed = {"first": 0, "second": 1, "route": "low", "winner": 0, "probability": 0.6}
    routes = pa.Table.from_pylist([{"item_id": key, **routed} for key in ("0", "1")])
    images = pa.Table.from_pylist([image(0), image(1)], IMAGES)
    judge = sampling.JudgeProcessor(SETTINGS.judge, sample.sampling_spec(SETTINGS)).load()
    made = judge.process({**NO_LOANS, "items": items, "images": images, "routes": routes})
    assert made.schema == JUDGMENTS
    rows = made.to_pylist()
    assert {row["item_id"] for row in rows if row["error"]} == {"0"}
    assert len(rows) == 2 * 3 * SETTINGS.sample.samples  # both orders and the bare question
    assert all(row["winner"] is not None for row in rows if not row["error"] and row["task"] == "pairwise")
    assert "0" not in select.choose(SETTINGS, items, routes, made)["item_id"].to_pylist()


def _tables(n_items):
    routed = {"first": 0, "second": 1, "route": "high", "winner": 0, "probability": 0.9}
    asked = {"question": "Which?", "responses": ["This.", "That."]}
    items = [{"item_id": f"{n}", **about("1"), **asked} for n in range(n_items)]
    return {
        "items": pa.Table.from_pylist(items, ITEMS),
        "images": pa.Table.from_pylist([image(1)], IMAGES),
        "borrowed": NO_LOANS["borrowed"],
        "routes": pa.Table.from_pylist([{"item_id": item["item_id"], **routed} for item in items]),
    }


def _demonstrating(min_parsed):
    spec = demonstrate.sampling_spec(SETTINGS)
    return sampling.JudgeProcessor(SETTINGS.judge, spec, min_parsed=min_parsed).load()


def test_a_judge_without_verdicts_is_not_asked_for_another_part(engine):
    engine.text = "Both answers\ndescribe the image."
    few = _demonstrating(0.5)
    few.process(_tables(2))
    few.process(_tables(2))  # too few texts to say anything
    judge = _demonstrating(0.5)
    judge.process(_tables(8))
    with pytest.raises(
        UserError, match=r'^0 of \d+ judgments .*writes none: "Both answers describe the image."; choose'
    ):
        judge.process(_tables(8))


@pytest.mark.parametrize(
    ("text", "min_parsed"),
    [
        ("Both answers describe the image.", 0.0),
        ("Overall Judgment: Answer 2 is better.", 0.8),
        ("Overall Judgment: It is a tie.", 0.8),
    ],
)
def test_a_judge_that_states_verdicts_or_ties_is_asked_on(engine, text, min_parsed):
    engine.text = text
    judge = _demonstrating(min_parsed)
    judge.process(_tables(8))
    assert judge.process(_tables(8))["error"].null_count


def test_a_verdict_in_the_judges_own_wording_is_read_and_its_ties_are_counted(engine, monkeypatch):
    monkeypatch.setattr(sampling, "asking_of", lambda judge: Asking(verdict="[[{verdict}]]"))
    for text, status, winners in (("This. [[B]]", "ok", {0, 1}), ("This. [[C]]", "none", {None})):
        engine.text = text
        judge = _demonstrating(0.5)
        rows = judge.process(_tables(8)).to_pylist()
        assert {row["winner"] for row in rows if row["task"] == "pairwise"} == winners
        assert {row["status"] for row in rows if row["task"] == "pairwise"} == {status}
        judge.process(_tables(8))  # states verdicts or ties


def test_texts_that_are_cut_short_are_told_from_others():
    counts = VerdictCounts()
    for _ in range(3):
        counts.add("pairwise", "The first", "truncated")
    with pytest.raises(UserError, match="max_tokens, which cuts most of them short"):
        sampling.refuse_unread(counts, 0.5)
