"""Sources in shapes that people report as bugs of other loaders: each ends as its table says."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from carevl.settings.data import Source
from carevl.store.schemas import CONTAMINATED

CASES = Path(__file__).parents[2].parent / "shared" / "data" / "cases"


@dataclass(frozen=True)
class Right:
    """What is right for a case: items, error rows by kind, words of their messages, and a question among the items."""

    good: int
    errors: dict[str, int] = field(default_factory=dict)
    message: str = ""
    question: str | None = None
    turns: list[tuple[str, str, list[int]]] | None = None
    images: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


TABLE = {
    "alpaca-history": Right(
        1,
        question="And the second?",
        turns=[
            ("user", "Answer in one word.\n\nIs the first one red?", []),
            ("assistant", "Yes, it is.", []),
        ],
    ),
    "avif": Right(2),
    "hub-cache-snapshot.tar": Right(1),
    "json-array-broken-in-middle": Right(30, {"file": 70}, "in the value at character 3021"),
    "mixed-dir-json-gz-skipped": Right(8),
    "mixed-first-16-without-image-key": Right(100, {"image_missing": 16}),
    "name-not-utf8-image.tar": Right(1),
    "near-duplicates-invoices": Right(4, images=4, settings={"near_duplicates": "merge"}),
    "parquet-duplicate-column": Right(0, {"format": 4}, "the column `chosen` stands 2 times"),
    "parquet-timestamp-far": Right(4),
    "png-aspect-250": Right(2),
    "png-iccp-bad-crc": Right(1, {"image_broken": 1}, "iCCP"),
    "png-palette-missing": Right(1, {"image_broken": 1}, "PNG of 82 bytes does not decode"),
    "ref-empty-bytes-and-path": Right(1),
    "ref-int-list": Right(1),
    "ref-struct-url": Right(1),
    "sharegpt-chosen-list-turns": Right(0, {"responses": 1}, "the conversations differ before their last turn"),
    "swift-rejected-images": Right(0, {"image_differs": 1}, "about different images"),
    "tag-in-question-spa-vl": Right(1, question="What is it?"),
    "tag-in-question-vlfeedback": Right(1, question="What is it?"),
    "tar-appledouble": Right(2),
    "tar-dots-in-key": Right(2),
    "text-control-tokens": Right(3),
    "text-empty-response": Right(0, {"responses": 1}, "response 2 of 2 is blank"),
    "text-latin1": Right(0, {"row": 1}, "is not UTF-8: byte 0xf9"),
    "trl-content-image-part": Right(1, question="What is it?"),
    "two-sources-one-name": Right(2, images=2),
}


def sources_of(case: str, folder: Path) -> list[Source]:
    path = CASES / case
    if path.suffix == ".tar":
        with tarfile.open(path, errors="surrogateescape") as archive:
            archive.extractall(folder, filter="fully_trusted")
        path = folder / path.stem
    if case == "two-sources-one-name":
        return [Source(path=str(path / name), name="mine") for name in ("a", "b")]
    return [Source(path=str(path / "snapshots/abc" if case.startswith("hub-cache") else path))]


@pytest.mark.parametrize("case", TABLE)
def test_a_case_ends_as_its_table_says(case: str, tmp_path: Path, ingested: Callable[..., Any]) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no cases at {CASES}")
    right = TABLE[case]
    images, items = ingested(sources_of(case, tmp_path / "source"), **right.settings)
    good = [item for item in items if item["error"] is None]
    errors = [item["error"] for item in items if item["error"] is not None]
    assert CONTAMINATED not in (error["kind"] for error in errors)
    assert (len(good), Counter(error["kind"] for error in errors)) == (right.good, right.errors)
    assert all(right.message in error["message"] for error in errors)
    assert right.question in (None, *(item["question"] for item in good))
    turns = [[(turn["role"], turn["text"], turn["places"]) for turn in item["turns"]] for item in good]
    assert right.turns in (None, *turns)
    assert right.images in (None, len(images))


def test_every_case_has_its_row_in_the_table() -> None:
    if not CASES.is_dir():
        pytest.skip(f"no cases at {CASES}")
    assert {path.name for path in CASES.iterdir()} - {"README.md"} == TABLE.keys()
