"""VQA: a question about the image of an id, under the names of COCO or plain ones; answers may be in annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from carevl.data.formats.base import Annotations, Format, identify, read_question, right_answers, user_turn
from carevl.data.rows import ImageNames, Preference, Row

_SPLITS = ("train2014", "val2014", "test2015")
_ENDINGS = ("", ".jpg", ".png")


def read(row: Row) -> Preference:
    """Read a question of VQA."""
    shown = {"image": ImageNames(tuple(_names(identify(row, "image_id"))))}
    return read_question({**row, **shown}, user_turn(row, "question"), "image_id", "question_id", images=["image"])


def _names(image_id: str) -> Iterator[str]:
    """Yield where the file of an image may lie, beside the row's file or in the source's directory."""
    names = [f"{image_id}{ending}" for ending in _ENDINGS]
    if image_id.isascii() and image_id.isdecimal() and len(image_id) <= 12:
        number = f"{int(image_id):012d}"
        names += [f"{number}.jpg", *(f"COCO_{split}_{number}.jpg" for split in _SPLITS)]
        yield from (f"{split}/COCO_{split}_{number}.jpg" for split in _SPLITS)
    yield from names
    yield from (f"images/{name}" for name in names)


def _read_annotation(row: Row) -> Sequence[str]:
    """Return the answers of ten people, or else the most frequent one."""
    return right_answers(row, "answers") or right_answers(row, "multiple_choice_answer")


FORMAT = Format(
    name="vqa",
    columns={"image_id": "number|text", "question": "text"},
    read=read,
    example={"image_id": "a.png", "question": "What is it?", "answer": "A cat."},
    of_questions=True,
    annotations=Annotations("question_id", "question_id", _read_annotation),
)
