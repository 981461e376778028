"""With `captioner.video: one` the captioner is shown all frames of a video at once, and experts read one caption."""

import io
import json

import pyarrow as pa
import pytest
from PIL import Image

from carevl.data.shown_videos import captioned_turns, frames_id
from carevl.errors import SettingsError
from carevl.judging.turns import Turn
from carevl.models.engines.base import Generation
from carevl.settings.loader import load_settings
from carevl.stages import caption, score
from carevl.stages.caption import CaptionProcessor, write_subjects
from carevl.store.ingested import Ingested
from carevl.store.schemas import BORROWED_CAPTIONS, IMAGES, ITEMS
from carevl.store.table import Table

SETTINGS = load_settings("mini", ["captioner.video=one"])
FRAMES = ["f0", "f1", "f2"]


def image(name):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "white").save(file, "PNG")
    return {"image_id": name, "bytes": file.getvalue(), "format": "PNG", "width": 4, "height": 4, "error": None}


def item(name, images, first=None, places=(), turns=(), n_frames=3):
    video = {"videos": [{"sha256": "v", "first": first, "seconds": [0.0] * n_frames}]} if first is not None else {}
    source = {"source": "s", "format": "f", "locator": name, "preference": None, "extra": json.dumps(video)}
    told = {"item_id": name, "images": images, "places": list(places), "turns": list(turns), "question": "What is it?"}
    return {**told, "responses": ["A cat.", "A dog."], "conflict": False, "sources": [source], "split": "train"}


@pytest.fixture
def ingested(tmp_path):
    """Part 0: a video with its first two frames, and an item about an image and the video of part 1."""
    tables = Ingested(tmp_path / "ingest")
    parts = [
        (
            ["a", "f0", "f1"],
            ["f2", "g0"],
            [item("v", FRAMES, 0, (0, 0, 0)), item("m", ["a", "g0"], 1, (0, 5), n_frames=1)],
        ),
        (["f2", "g0"], [], [item("g", ["f2"], None, (0,))]),
    ]
    for number, (own, borrowed, items) in enumerate(parts):
        tables.images.write(number, pa.Table.from_pylist([image(name) for name in own], IMAGES))
        tables.borrowed.write(number, pa.Table.from_pylist([image(name) for name in borrowed], IMAGES))
        tables.items.write(number, pa.Table.from_pylist(items, ITEMS))
    return tables


class Engine:
    """Writes what it was shown and asked."""

    def generate(self, requests, *, max_tokens, temperature=0.0, logprob_texts=()):
        return [Generation(f"{len(request.places)}: {request.prompt}", 4, False) for request in requests]


def _captions(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(caption, "generator", lambda model: Engine())
    subjects = Table(tmp_path / "subjects")
    write_subjects(ingested, subjects)
    processor = CaptionProcessor(SETTINGS.captioner).load()
    for number in (0, 1):
        tables = {
            "subjects": subjects.read(number),
            "images": ingested.images.read(number),
            "borrowed": ingested.borrowed.read(number),
        }
        whole = processor.process(tables)
        assert processor.process(processor.preprocess(tables)) == whole
        assert {(row["image_id"],) for row in whole.to_pylist()} == set(processor.row_inputs(tables))
        yield whole


def test_a_video_has_one_caption_and_its_frames_have_none_of_their_own(ingested, tmp_path, monkeypatch):
    first, second = _captions(ingested, tmp_path, monkeypatch)
    texts = {row["image_id"]: row["text"] for row in first.to_pylist()}
    alone = f"1: {SETTINGS.captioner.prompt}"
    assert texts == {
        "a": alone,
        frames_id(FRAMES): f"3: {SETTINGS.captioner.video_prompt}",
        frames_id(["g0"]): alone,
    }
    assert second["image_id"].to_pylist() == ["f2"]  # an item shows it as an image, too


def test_experts_read_one_caption_where_the_video_stands(ingested, tmp_path, monkeypatch):
    first, _ = _captions(ingested, tmp_path, monkeypatch)
    empty = pa.Table.from_pylist([], BORROWED_CAPTIONS)
    tables = {"items": ingested.items.read(0), "captions": first, "borrowed_captions": empty}
    rows, inputs = score._expert_inputs(SETTINGS.experts[0], tables)
    assert [row["error"] for row in rows] == [None] * 4
    whole = f"3: {SETTINGS.captioner.video_prompt}"
    assert (inputs[0].turns, inputs[0].captions) == ((Turn("user", "What is it?", (0,)),), (whole,))
    assert whole in inputs[0].row(SETTINGS.experts[0])[0]
    assert inputs[2].turns == (Turn("user", "What is it?", (0, 5)),)
    assert len(inputs[2].captions) == 2


def test_places_of_other_images_stay_beside_the_one_of_a_video():
    said = {"role": "user", "text": "Is  in ?", "places": [3, 3, 3, 7]}
    mixed = item("m", [*FRAMES, "a", "b"], 0, (2,), [said])
    turns, names = captioned_turns(mixed, {frames_id(FRAMES), "a", "b"})
    assert turns == (Turn("user", "Is  in ?", (3, 7)), Turn("user", "What is it?", (2,)))
    assert names == [frames_id(FRAMES), "a", "b"]
    turns, names = captioned_turns(mixed, {*FRAMES, "a", "b"})
    assert (turns[0].places, names) == ((3, 3, 3, 7), [*FRAMES, "a", "b"])


def test_the_captioner_has_to_see_all_frames_at_once():
    with pytest.raises(SettingsError, match=r"captioner\.max_frames shows 4 at once"):
        load_settings("mini", ["captioner.video=one", "captioner.max_frames=4"])
    assert (load_settings("mini").captioner.max_images, SETTINGS.captioner.max_images) == (1, 8)
