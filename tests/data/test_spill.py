"""Rows come out of a spill once, in parts that fit in memory, items with their image."""

import hashlib
from collections import Counter

import pytest

from carevl.data.spill import Spill
from tests.helpers.items import about

N, SIZE = 60, 10_000


def _image(n):
    data = hashlib.sha256(str(n).encode()).digest() * (SIZE // 32)
    return {"image_id": hashlib.sha256(data).hexdigest(), "bytes": data}


def _item(n, image_id, k):
    name = hashlib.sha256(f"{n} {k}".encode()).hexdigest()
    source = {"name": "s", "locator": f"{n}:{k}", "preference": None, "extra": "{}"}
    return {"item_id": name, **about(image_id), "question": "Q?", "responses": ["a", "b"], "sources": [source]}


@pytest.fixture
def filled(tmp_path):
    def make(**how):
        spill = Spill(tmp_path / "spill", 2, **how)
        for n in range(N):
            image = _image(n)
            for k in range(2):
                spill.add([image] if k == 0 else [], _item(n, image["image_id"], k))
        return spill

    return make


def test_a_large_part_is_divided(filled, tmp_path):
    parts = list(filled(most_bytes=60_000).parts({}))
    assert len(parts) > 10
    assert max(len(images) for images, _ in parts) * SIZE < 4 * 60_000
    assert Counter(row["image_id"] for images, _ in parts for row in images) == {
        _image(n)["image_id"]: 1 for n in range(N)
    }
    assert sum(len(items) for _, items in parts) == 2 * N
    for images, items in parts:
        assert {name for item in items for name in item["images"]} == {image["image_id"] for image in images}
    assert not [path for path in (tmp_path / "spill").iterdir() if path.is_dir()]


def test_parts_that_fit_stay_as_many_as_were_asked_for(filled):
    assert len(list(filled().parts({}))) == 2


def test_items_of_an_image_that_is_another_move_to_it_in_divided_parts_too(filled):
    twin, kept = _image(0)["image_id"], _image(1)["image_id"]
    parts = list(filled(most_bytes=60_000).parts({twin: kept}))
    assert twin not in {row["image_id"] for images, _ in parts for row in images}
    [(_, items)] = [part for part in parts if kept in {row["image_id"] for row in part[0]}]
    assert sum(item["images"] == [kept] for item in items) == 4
    assert sum(len(items) for _, items in parts) == 2 * N
