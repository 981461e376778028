"""Stage `score` with an expert that sees the image: its own scores, and those beside a grey image."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from PIL import Image

from carevl.models.engines import image_scorer
from carevl.models.engines.base import ScoringRequest
from carevl.settings.models import Expert
from carevl.stages import score
from carevl.store.schemas import CAPTIONS, IMAGES, ITEMS
from tests.helpers.families import draw_picture
from tests.helpers.items import NO_LOANS, about

RESPONSES = ["Two.", "There are three red circles."]


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tables():
    pictures = {"a": draw_picture(0), "b": draw_picture(1), "thin": Image.new("RGB", (600, 2))}
    images = [{"image_id": name, "bytes": _png(image)} for name, image in pictures.items()]
    items = [
        {"item_id": f"of-{name}", **about(name), "question": "How many?", "responses": RESPONSES}
        for name in ("b", "a", "thin")
    ]
    captions = [{"image_id": name, "view": "default", "text": "Two red circles."} for name in pictures]
    return {
        **NO_LOANS,
        "items": pa.Table.from_pylist(items, ITEMS),
        "images": pa.Table.from_pylist(images, IMAGES),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
    }


@pytest.mark.parametrize("ahead", [False, True], ids=["in the engine's actor", "made ready ahead"])
def test_it_scores_the_image_of_its_item(ahead, tables, family_directory):
    settings = {"engine": "transformers", "scoring": "yes", "pool": {"batch_size": 2}}
    expert = Expert(name="seer", kind="vlm", path=str(family_directory("qwen2_5_vl")), **settings)
    processor = score.ScoreProcessor(expert).load()
    made = processor.process(processor.preprocess(tables) if ahead else tables)
    rows = {(row["item_id"], row["view"]): row for row in made.to_pylist()}
    assert len(rows) == 6
    scorer = image_scorer(expert)
    for name, image in (("a", draw_picture(0)), ("b", draw_picture(1))):
        for view, seen in (("default", image), ("none", Image.new("RGB", image.size, (127, 127, 127)))):
            expected = scorer.score([ScoringRequest((seen,), "How many?", response) for response in RESPONSES])
            assert rows[f"of-{name}", view]["scores"] == pytest.approx(expected, abs=1e-4)
    assert rows["of-a", "default"]["scores"] != rows["of-b", "default"]["scores"]
    assert {rows["of-thin", view]["error"]["kind"] for view in ("default", "none")} == {"refused"}
