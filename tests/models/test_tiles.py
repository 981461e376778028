"""Tiles that InternVL cuts an image into, bounded by the settings: in both engines alike."""

from __future__ import annotations

import itertools

import pytest

from carevl.miniworld.items import draw_items
from carevl.models.engines import generator
from carevl.models.engines.base import GenerationRequest
from carevl.settings.models import Judge, Pool

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def tiny(family_directory):
    return family_directory("internvl")


@pytest.fixture(scope="module")
def requests():
    drawn = itertools.islice(draw_items("test", "tiles"), 4)
    return [GenerationRequest((image.resize((400, 300)),), "question") for image, _ in drawn]


def _generator(path, engine, tiles):
    return generator(
        Judge(path=str(path), engine=engine, max_image_tiles=tiles, max_model_len=256, pool=Pool(batch_size=4))
    )


def test_tiles_are_bounded_and_texts_are_those_of_transformers(tiny, requests):
    reference = _generator(tiny, "transformers", 4)
    [image] = reference.processor.image_processor(list(requests[0].images), return_tensors="pt")["pixel_values"].shape[
        :1
    ]
    assert image == 4 + 1  # and the whole image
    bounded = _generator(tiny, "vllm", 4)
    tiles = bounded.engine._preprocess_cmpl_one(
        {"prompt": "<IMG_CONTEXT>\nquestion", "multi_modal_data": {"image": requests[0].images[0]}}
    )
    assert tiles["mm_placeholders"]["image"][0].get_num_embeds() == 5 * 4  # 4 tokens a tile
    expected = [text.text for text in reference.generate(requests, max_tokens=8)]
    assert [text.text for text in bounded.generate(requests, max_tokens=8)] == expected
    whole = [text.text for text in _generator(tiny, "transformers", None).generate(requests, max_tokens=8)]
    assert whole != expected
