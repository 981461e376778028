"""Stage `score`: inputs that are too long, by the two policies, with an expert that counts words."""

from pathlib import Path

import pyarrow as pa
import pytest

from carevl.settings.loader import load_settings
from carevl.settings.models import Expert
from carevl.stages import score
from carevl.store.schemas import CAPTIONS, ITEMS
from tests.helpers.items import NO_LOANS, about

CAPTION = "A red circle. Two blue squares are below it! Is that a dog?\nIt is a cat."


class Counting:
    """Scores a response by the number of words of its input, and refuses inputs of more than `limit` words."""

    limit = 12

    def score(self, conversations):
        from carevl.models.row_errors import Failure, SomeRowsError

        lengths = [len(f"{turn} {response}".split()) for turn, response in conversations]
        failures = {i: Failure("too long", f"{n} words") for i, n in enumerate(lengths) if n > self.limit}
        if failures:
            raise SomeRowsError([None if i in failures else float(n) for i, n in enumerate(lengths)], failures)
        return [float(n) for n in lengths]


def scored(monkeypatch, limit, *overrides, caption=CAPTION):
    monkeypatch.setattr(Counting, "limit", limit)
    expert = {"name": "counting", "kind": "python", "path": f"{__name__}:Counting", "template": "{caption} {question}"}
    expert |= dict(override.split("=") for override in overrides)
    items = [{"item_id": "a", **about("i"), "question": "How many?", "responses": ["One.", "It is two."]}]
    captions = [{"image_id": "i", "view": "default", "text": caption}]
    monkeypatch.setattr("carevl.models.experts.python._class", lambda path: Counting)
    made = (
        score.ScoreProcessor(Expert(**expert))
        .load()
        .process(
            {
                **NO_LOANS,
                "items": pa.Table.from_pylist(items, ITEMS),
                "captions": pa.Table.from_pylist(captions, CAPTIONS),
            }
        )
    )
    return {row["view"]: row for row in made.to_pylist()}


def test_an_input_that_is_too_long_is_an_error_of_its_row_and_of_no_other(monkeypatch):
    rows = scored(monkeypatch, 12)
    assert rows["default"]["error"]["kind"] == "too long"
    assert rows["default"]["scores"] is None
    assert rows["none"]["scores"] == [3.0, 5.0]
    assert rows["none"]["caption_read"] is None


def test_a_caption_is_shortened_by_whole_sentences_until_question_and_responses_fit(monkeypatch):
    rows = scored(monkeypatch, 14, "too_long=summarise")
    read = "A red circle. Two blue squares are below it!"
    assert rows["default"]["error"] is None
    assert rows["default"]["scores"] == [12.0, 14.0]
    assert rows["default"]["caption_read"] == pytest.approx(len(read) / len(CAPTION))


def test_a_caption_that_fits_is_read_whole(monkeypatch):
    rows = scored(monkeypatch, 100, "too_long=summarise")
    assert rows["default"]["caption_read"] == 1.0
    assert rows["default"]["scores"] == [20.0, 22.0]


@pytest.mark.parametrize("caption", ["one sentence of far too many words for this expert", CAPTION])
def test_what_cannot_fit_keeps_its_error(monkeypatch, caption):
    rows = scored(monkeypatch, 4, "too_long=summarise", caption=caption)
    assert rows["default"]["error"]["kind"] == "too long"
    assert rows["none"]["error"]["kind"] == "too long"


def test_the_policy_names_other_scores():
    settings, other = load_settings("mini"), load_settings("mini", ["experts.0.too_long=summarise"])
    inputs = [score.STAGE.fingerprint_inputs(each, Path(), "score/llama") for each in (settings, other)]
    assert inputs[0] != inputs[1]
