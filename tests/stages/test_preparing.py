"""Parts made ready ahead of the engines: the same rows come out, and nothing is decoded or tokenised a second time."""

import io

import pyarrow as pa
import pytest
from PIL import Image

from carevl.benchmarks import run as evaluate
from carevl.benchmarks.question_tables import to_questions
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Image as Named
from carevl.data.pictures import decode_images, picture
from carevl.miniworld.items import draw_items
from carevl.models.conversations import Encoded, encode
from carevl.settings.loader import load_settings
from carevl.settings.models import Expert
from carevl.stages import caption, sample, sampling, score
from carevl.store.schemas import CAPTIONS, EXPERT_TOKENS, IMAGES, ITEMS, QUESTION_IMAGES
from tests.helpers.items import NO_LOANS, about

SETTINGS = load_settings("mini", ["captioner.engine=transformers", "judge.max_tokens=12"])


@pytest.fixture(scope="module")
def tables():
    images, items, routes, captions = [], [], [], []
    for (drawn, [item, *_]), _ in zip(draw_items("test", "preparing"), range(3), strict=False):
        key, file = str(len(images)), io.BytesIO()
        drawn.save(file, "PNG")
        images.append({"image_id": key, "bytes": file.getvalue()})
        responses = [response.text for response in item.responses][:2]
        items.append({"item_id": key, **about(key), "question": item.question.text, "responses": responses})
        routes.append({"item_id": key, "first": 0, "second": 1, "route": "low", "winner": 0, "probability": 0.5})
        captions.append({"image_id": key, "view": "default", "text": "A red circle. It is above a blue square."})
    return {
        "images": pa.Table.from_pylist(images, IMAGES),
        **NO_LOANS,
        "items": pa.Table.from_pylist(items, ITEMS),
        "routes": pa.Table.from_pylist(routes),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
    }


@pytest.fixture
def no_decoding(monkeypatch):
    """From when it is called, no picture can be decoded."""

    def forbid():
        def decode(data, limits, resize_pixels):
            raise AssertionError("decoded again")

        monkeypatch.setattr("carevl.data.pictures.decode_rgb", decode)

    return forbid


def test_a_picture_is_the_same_however_it_came(tmp_path):
    file = io.BytesIO()
    turned = Image.new("RGB", (5, 3), (10, 20, 30))
    turned.putpixel((4, 0), (200, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(file, "PNG", exif=exif)
    rows = [{"image_id": "turned", "bytes": file.getvalue()}, {"image_id": "broken", "bytes": b"no image"}]
    rows += [{"image_id": "unwanted", "bytes": file.getvalue()}, {"image_id": "failed", "bytes": None}]
    table = pa.Table.from_pylist(rows, IMAGES)
    ready = {row["image_id"]: row for row in decode_images(table, {"turned", "broken", "failed"}).to_pylist()}
    made = picture(ready["turned"])
    assert made.size == (3, 5)
    assert made.tobytes() == picture(rows[0]).tobytes()
    assert ready["turned"]["bytes"] is ready["unwanted"]["bytes"] is None
    assert ready["broken"] | {"rgb": None} == ready["broken"]
    assert ready["broken"]["bytes"] == b"no image"
    assert ready["unwanted"]["rgb"] is ready["failed"]["rgb"] is None


def test_captions(tables, no_decoding):
    mine = {"images": tables["images"]}
    processor = caption.CaptionProcessor(SETTINGS.captioner)
    ready, loaded = processor.preprocess(mine), processor.load()
    expected = loaded.process(mine)
    no_decoding()
    assert loaded.process(ready).equals(expected)
    assert not any(expected["error"].to_pylist())


def test_judgments(tables, no_decoding):
    spec = sample.sampling_spec(SETTINGS)
    mine = {name: tables[name] for name in ("items", "images", "borrowed", "routes")}
    mine["routes"] = pa.Table.from_pylist(
        [row | {"route": "low" if row["item_id"] == "1" else "dropped"} for row in mine["routes"].to_pylist()]
    )
    processor = sampling.JudgeProcessor(SETTINGS.judge, spec)
    ready, loaded = processor.preprocess(mine), processor.load()
    assert [row["rgb"] is None for row in ready["images"].to_pylist()] == [True, False, True]
    expected = loaded.process(mine)
    no_decoding()
    assert loaded.process(ready).equals(expected)
    assert set(expected["item_id"].to_pylist()) == {"1"}


def test_predictions(tables, no_decoding):
    [first, second, _] = [row["bytes"] for row in tables["images"].to_pylist()]
    images = pa.Table.from_pylist([{"name": "a", "bytes": first}, {"name": "b", "bytes": second[:60]}], QUESTION_IMAGES)
    told = {"benchmark": "vl-rewardbench", "protocol": "strict", "sample": 0, "task": "pairwise"}
    prompt = "Which is better?"
    asked = [
        Question(**told, key=f"{name}-{order}", order=order, prompt=prompt, images=(Named(name),), response=None)
        for name in ("a", "b")
        for order in ((0, 1), (1, 0))
    ]
    mine = {"questions": to_questions(asked), "images": images}
    processor = evaluate.AnswerProcessor(SETTINGS.judge, "base", {"vl-rewardbench": "vl-rewardbench"}, seed=0)
    ready, loaded = processor.preprocess(mine), processor.load()
    expected = loaded.process(mine)
    assert loaded.process(ready).equals(expected)
    assert [row["error"] is None for row in expected.to_pylist()] == [True, True, False, False]
    no_decoding()
    good = {"questions": mine["questions"].slice(0, 2), "images": ready["images"].slice(0, 1)}
    assert loaded.process(good).equals(expected.slice(0, 2))


@pytest.mark.parametrize("policy", ["error", "summarise"])
def test_scores(tables, monkeypatch, policy):
    expert = SETTINGS.experts[0].model_copy(update={"too_long": policy})
    mine = {name: tables[name] for name in ("items", "captions", "borrowed_captions")}
    processor = score.ScoreProcessor(expert)
    ready, loaded = processor.preprocess(mine), processor.load()
    assert ready["tokens"].num_rows == 6  # every item with its caption and without
    expected = loaded.process(mine)
    monkeypatch.setattr("carevl.models.conversations._encode", lambda tokenizer, texts: [None] * len(texts))
    assert loaded.process(ready).equals(expected)
    assert not any(expected["error"].to_pylist())


def test_an_expert_that_reads_texts_is_handed_texts(tables):
    expert = Expert(name="own", kind="python", path="collections:OrderedDict")
    mine = {name: tables[name] for name in ("items", "captions", "borrowed_captions")}
    assert score.ScoreProcessor(expert).preprocess(mine) is mine


def test_types_of_tokens_survive():
    rows = [{"ids": [[1, 2], [3]], "types": [[0, 1], [0]]}, {"ids": [[4], [5, 6]], "types": [None, None]}]
    found = score._tokens(pa.Table.from_pylist(rows, EXPERT_TOKENS))
    assert found == [[Encoded([1, 2], [0, 1]), Encoded([3], [0])], [Encoded([4]), Encoded([5, 6])]]
    assert encode(None, found[0]) == found[0]
