"""Source rows into images and items: identities, merging, labels, and the account of every row."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from carevl.data.images import ImageLimits
from carevl.data.intake import Intake, error_id, item_id, merge_images, merge_items
from carevl.data.reading import Source, read_source
from carevl.data.rows import RowError
from carevl.store.schemas import IMAGES, ITEMS

Tables = tuple[list[dict[str, Any]], list[dict[str, Any]]]
TakeIn = Callable[..., Tables]


def row(n: int = 0, image: str = "a.png", better: int = 0, **change: object) -> dict[str, object]:
    texts = [f"Yes {n}.", f"No {n}."]
    return {"image": image, "question": f"Which, {n}?", "chosen": texts[better], "rejected": texts[1 - better]} | change


def take_all(*sources: Source) -> list[dict[str, Any]]:
    made = [Intake(source)(found)[1] for source in sources for found in read_source(source)]
    return merge_items(made)


@pytest.fixture
def source(write_lines: Callable[..., Path], tmp_path: Path, draw: Callable[..., bytes]) -> Callable[..., Source]:
    """`source("name", rows)`: a source of its own file beside the image a.png."""
    (tmp_path / "a.png").write_bytes(draw())

    def make(name: str, rows: list[object], **options: Any) -> Source:
        return Source(name, str(write_lines(rows, f"{name}.jsonl")), image_root=str(tmp_path), **options)

    return make


def test_tables_fit_their_schemas_and_ids_are_hashes(
    source: Callable[..., Source], take_in: TakeIn, draw: Callable[..., bytes]
) -> None:
    images, items = take_in(source("one", [row(), row(1), row(2, chosen=None)]))
    assert pa.Table.from_pylist(items, ITEMS).to_pylist() == items
    [image] = pa.Table.from_pylist(merge_images(images), IMAGES).to_pylist()
    assert image["image_id"] == hashlib.sha256(draw()).hexdigest()
    assert (image["bytes"], image["format"], image["width"], image["height"]) == (draw(), "PNG", 9, 7)
    for item in items:
        if item["error"] is None:
            assert item["item_id"] == item_id([image["image_id"]], (0,), (), item["question"], item["responses"])
        else:
            assert item["item_id"] == error_id(item["sources"][0]["source"], item["sources"][0]["locator"])
            assert item["error"]["stage"] == "ingest"
    assert [item["error"] is not None for item in items].count(True) == 1


def test_preference_follows_its_response_and_its_place_tells_nothing(source: Callable[..., Source]) -> None:
    items = take_all(source("one", [row(n) for n in range(200)]))
    first_better = 0
    for item in items:
        by_text = dict(zip(item["responses"], item["source_preference"], strict=True))
        assert all(value == (1.0 if text.startswith("Yes") else 0.0) for text, value in by_text.items())
        assert item["sources"][0]["preference"] == item["source_preference"]
        first_better += item["source_preference"] == [1.0, 0.0]
    assert 70 < first_better < 130


def test_equal_items_merge_and_remember_their_sources(source: Callable[..., Source]) -> None:
    one = source("one", [row(), row()])
    two = source("two", [row(idx=7, ds_name="d")])
    [item] = take_all(one, two)
    assert [found["source"] for found in item["sources"]] == ["one", "one", "two"]
    assert [found["locator"].rpartition("#")[2] for found in item["sources"]] == ["0", "1", "0"]
    assert [found["format"] for found in item["sources"]] == ["spa-vl", "spa-vl", "rlaif-v"]
    assert json.loads(item["sources"][2]["extra"]) == {"idx": 7, "ds_name": "d"}
    assert (item["conflict"], sorted(item["source_preference"]), item["gold"]) == (False, [0.0, 1.0], None)


def test_opposite_preferences_are_a_conflict_that_keeps_both(source: Callable[..., Source]) -> None:
    [item] = take_all(source("one", [row()]), source("two", [row(better=1)]))
    assert (item["conflict"], item["source_preference"]) == (True, None)
    assert [found["preference"] for found in item["sources"]] in ([[0, 1], [1, 0]], [[1, 0], [0, 1]])


def test_other_ratings_in_the_same_order_are_no_conflict(source: Callable[..., Source]) -> None:
    item = {"image": "a.png", "question": "Which?", "responses": ["x", "y", "z"]}
    ratings = [[1, 2, 3], [1, 1, 2], None, [10, 20, 30]]
    [merged] = take_all(source("one", [item | {"source_preference": rating} for rating in ratings]))
    assert not merged["conflict"]
    assert dict(zip(merged["responses"], merged["source_preference"], strict=True)) == {"x": 1, "y": 2, "z": 3}


def test_labels_fill_gold_and_outlast_a_conflict(source: Callable[..., Source]) -> None:
    noisy, trusted = source("a", [row(better=1)]), source("b", [row()], labels=True, split="calibration")
    [item] = take_all(noisy, trusted)
    gold = dict(zip(item["responses"], item["gold"], strict=True))
    assert gold == {"Yes 0.": 1.0, "No 0.": 0.0}
    assert (item["conflict"], item["source_preference"], item["split"]) == (True, None, "calibration")
    [item] = take_all(trusted, source("c", [row(better=1)], labels=True))
    assert (item["conflict"], item["gold"]) == (True, None)


def test_merging_does_not_depend_on_the_order_of_rows(source: Callable[..., Source]) -> None:
    sources = [source(name, [row(n % 5, better=n % 2) for n in range(12)]) for name in "abc"]
    made = [Intake(one)(found)[1] for one in sources for found in read_source(one)]
    merged = merge_items(made)
    assert len(merged) == 5
    for seed in range(5):
        assert merge_items(random.Random(seed).sample(made, len(made))) == merged


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"chosen": None, "rejected": None}, "responses"),
        ({"rejected": None}, "responses"),
        ({"rejected": "Yes 0."}, "responses"),
        ({"question": None}, "question"),
        ({"question": ""}, "question"),
        ({"question": 5}, "question"),
        ({"image": None}, "image_missing"),
        ({"image": "absent.png"}, "image_missing"),
        ({"image": "../a.png"}, "image_refused"),
        ({"image": "cut.png"}, "image_broken"),
        ({"image": "html.jpg"}, "image_broken"),
        ({"image": "svg.svg"}, "image_broken"),
        ({"image": "empty.png"}, "image_broken"),
        ({"image": "huge.png"}, "image_too_large"),
        ({"image": "http://127.0.0.1:9/a.png"}, "image_refused"),
        ({"image": ["a.png"] * 9}, "images_many"),
        ({"image": ["a.png", "cut.png"]}, "image_broken"),
        ({"question": "<image> and <image>?"}, "image_places"),
    ],
)
def test_each_fault_is_an_error_of_its_kind(
    change: dict[str, object],
    kind: str,
    source: Callable[..., Source],
    take_in: TakeIn,
    draw: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    (tmp_path / "cut.png").write_bytes(draw()[:-30])
    (tmp_path / "html.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (tmp_path / "svg.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(draw(size=(400, 300)))
    rows = [row(), row() | change, row(1)]
    images, items = take_in(source("one", rows), limits=ImageLimits(max_image_pixels=100_000))
    assert [item["error"]["kind"] for item in items if item["error"]] == [kind]
    assert sum(len(item["sources"]) for item in items) == 3
    known = {image["image_id"] for image in images}
    assert known.issuperset(name for item in items for name in item["images"])


def test_a_wrong_extension_does_no_harm(
    source: Callable[..., Source], take_in: TakeIn, draw: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "really_a_gif.jpg").write_bytes(draw("GIF"))
    images, items = take_in(source("one", [row(image="really_a_gif.jpg")]))
    assert (images[0]["format"], items[0]["error"]) == ("GIF", None)


def test_a_tenth_of_broken_images_costs_a_tenth_of_the_rows(
    source: Callable[..., Source], take_in: TakeIn, draw: Callable[..., bytes], tmp_path: Path
) -> None:
    for n in range(100):
        data = draw("JPEG", seed=n, size=(64, 48))
        (tmp_path / f"{n}.jpg").write_bytes(data[: len(data) // 2] if n % 10 == 3 else data)
    images, items = take_in(source("one", [row(n, f"{n}.jpg") for n in range(100)]))
    assert sum(item["error"] is None for item in items) == 90
    assert sum(image["error"] is None for image in images) == 90
    assert sum(len(item["sources"]) for item in items) == 100
    assert all(image["bytes"] is None for image in images if image["error"])


def test_text_that_no_table_takes_is_mended_and_long_text_kept(source: Callable[..., Source], take_in: TakeIn) -> None:
    long = "why " * 25_600
    rows = [row(chosen="a\0b"), row(chosen="a\ud800b", question="\udfff?"), row(question=long)]
    _, items = take_in(source("one", rows))
    table = pa.Table.from_pylist(items, ITEMS)
    assert table.column("error").null_count == 3
    texts = {text for item in items for text in item["responses"]}
    assert "a\ufffdb" in texts
    assert {item["question"] for item in items} == {"Which, 0?", "\ufffd?", long}


def test_repeated_row_ids_do_not_merge_items(source: Callable[..., Source]) -> None:
    items = take_all(source("one", [row(0, id="same"), row(1, id="same")]))
    assert [json.loads(item["sources"][0]["extra"]) for item in items] == [{"id": "same"}] * 2


def test_an_image_shared_by_many_rows_has_one_row(source: Callable[..., Source], take_in: TakeIn) -> None:
    images, items = take_in(source("one", [row(n) for n in range(20)]))
    assert len(items) == 20
    assert len(merge_images(images)) == 1


def test_row_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RowError("image_fetch", "no \ud800")))
    assert (error.kind, error.message, str(error)) == ("image_fetch", "no \ufffd", "no \ufffd")


def test_an_empty_file_gives_no_rows(source: Callable[..., Source], take_in: TakeIn) -> None:
    assert take_in(source("one", [])) == ([], [])


def test_url_images_are_fetched_only_with_a_fetcher(source: Callable[..., Source], draw: Callable[..., bytes]) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from carevl.data.urls import UrlFetcher

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(draw())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.handle_request).start()
        one = source("one", [row(image=f"http://127.0.0.1:{server.server_port}/a.png")])
        [found] = read_source(one)
        assert Intake(one)(found)[1]["error"]["kind"] == "image_refused"
        [image], item = Intake(one, fetcher=UrlFetcher(5, ("127.0.0.1/32",)))(found)
    assert item["error"] is None
    assert image["bytes"] == draw()


def test_rows_stream_through_without_being_kept(source: Callable[..., Source]) -> None:
    one = source("one", [row(n) for n in range(2000)])
    rows: Iterator[Any] = read_source(one)
    assert next(rows).locator.endswith("#0")
    assert sum(1 for _ in rows) == 1999
