"""Sources of questions: VQA and COCO as they are published, with answers in files of their own."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carevl.data.containers import read_records
from carevl.data.files import SourceError, locate
from carevl.data.intake import Intake
from carevl.data.reading import Source, SourceRow, detect_formats, read_source
from tests.data.test_containers import tar

Draw = Callable[..., bytes]
QUESTIONS = [
    {"image_id": 42, "question": "What is it?", "question_id": 420},
    {"image_id": 42, "question": "Which colour?", "question_id": 421},
    {"image_id": 7, "question": "How many?", "question_id": 70},
]
ANSWERS = [
    {"question_id": 70, "image_id": 7, "answers": [], "multiple_choice_answer": "two"},
    {
        "question_id": 420,
        "image_id": 42,
        "multiple_choice_answer": "cat",
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(["cat", "dog"])
        ],
    },
]
CAPTIONS = {
    "info": {"year": 2014},
    "images": [{"id": n, "file_name": f"{n}.png", "height": 7} for n in (1, 2, 3)],
    "licenses": [{"id": 1, "name": "none"}],
    "annotations": [
        {"image_id": 2, "id": 20, "caption": "A cat."},
        {"image_id": 1, "id": 10, "caption": "A dog."},
        {"image_id": 2, "id": 21, "caption": "A cat on a mat.\n"},
    ],
}


def vqa(folder: Path, draw: Draw, names: tuple[str, str] = ("42.png", "7.png")) -> Path:
    """The questions file of VQA v2 with images under these names."""
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw(seed=n))
    path = folder / "questions.json"
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_subtype": "val2014", "license": {"url": "x"}}
    path.write_text(json.dumps(head | {"questions": QUESTIONS}))
    return path


def annotate(folder: Path, annotations: object) -> str:
    path = folder / "annotations.json"
    path.write_text(json.dumps({"info": {}, "annotations": annotations, "license": {}}))
    return str(path)


def read(path: Path | str, **options: Any) -> list[SourceRow]:
    return list(read_source(Source("s", str(path), respond=True, **options)))


def extras(rows: list[SourceRow]) -> list[tuple[str, Any]]:
    return [(row.preference.question, row.preference.extra) for row in rows]


@pytest.mark.parametrize(
    "names",
    [
        ("42.png", "7.png"),
        ("000000000042.jpg", "000000000007.jpg"),
        ("COCO_val2014_000000000042.jpg", "COCO_train2014_000000000007.jpg"),
        ("val2014/COCO_val2014_000000000042.jpg", "train2014/COCO_train2014_000000000007.jpg"),
        ("images/42.png", "images/7.jpg"),
    ],
)
def test_questions_of_vqa_find_their_images_by_id(
    names: tuple[str, str], tmp_path: Path, draw: Draw, take_in: Callable[..., Any]
) -> None:
    path = vqa(tmp_path, draw, names)
    source = Source("s", str(path), respond=True)
    assert list(detect_formats(source).values()) == ["vqa"]
    images, items = take_in(source)
    assert [item["error"] for item in items] == [None] * 3
    assert Counter(item["images"][0] for item in items) == Counter(image["image_id"] for image in images)
    assert {image["bytes"] for image in images} == {draw(seed=0), draw(seed=1)}
    [row] = [row for row in read(path) if row.locator == "questions.json#2"]
    assert row.preference.extra == {"image_id": 7, "question_id": 70}


def test_an_image_that_no_name_finds_is_named(tmp_path: Path, draw: Draw) -> None:
    path = vqa(tmp_path, draw)
    (tmp_path / "7.png").unlink()
    source = Source("s", str(path), respond=True)
    errors = [Intake(source)(row)[1]["error"] for row in read_source(source)]
    assert errors[:2] == [None, None]
    assert errors[2]["kind"] == "image_missing"
    assert errors[2]["message"].startswith(
        "'train2014/COCO_train2014_000000000007.jpg' (nor 16 other names): no such file"
    )
    path.write_text(json.dumps([{"image_id": "../secret", "question": "What?"}]))
    [row] = read_source(source)
    assert Intake(source)(row)[1]["error"]["kind"] == "image_refused"


def test_answers_of_vqa_come_from_their_file(tmp_path: Path, draw: Draw) -> None:
    path = vqa(tmp_path, draw)
    rows = read(tmp_path, annotations=annotate(tmp_path, ANSWERS))
    assert [row.locator for row in rows] == [f"{path.name}#{n}" for n in range(3)]
    assert [extra.get("answers") for _, extra in extras(rows)] == [["cat", "dog"], None, ["two"]]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            [{"question_id": 1, "answers": ["x"]}],
            "no annotation has the `question_id` of a row; name the annotations of",
        ),
        ([], "annotation 0: an object has no list `annotations`, or an empty one"),
        ([{"answers": ["x"]}], "annotation 0: `question_id` should be a whole number or text, found null"),
        ([*ANSWERS, "x"], "annotation 2: it should be an object, found str"),
        ([{"question_id": 70, "answers": [{"answer": {}}]}], "annotation 0: `answers` should be text or a number"),
    ],
)
def test_a_file_of_annotations_that_does_not_fit_is_refused(
    annotations: list[object], message: str, tmp_path: Path, draw: Draw
) -> None:
    path, file = vqa(tmp_path, draw), annotate(tmp_path, annotations)
    with pytest.raises(SourceError) as failure:
        read(path, annotations=file)
    assert str(failure.value).startswith(f"{file}: {message}")


def test_a_file_of_annotations_that_cannot_be_read_is_refused(tmp_path: Path, draw: Draw) -> None:
    path = vqa(tmp_path, draw)
    with pytest.raises(SourceError, match=r"absent\.json: the annotations cannot be read: "):
        read(path, annotations=str(tmp_path / "absent.json"))
    (tmp_path / "cut.json").write_text('{"annotations": [{"question_id": 70, "ans')
    with pytest.raises(SourceError, match=r"cut\.json: the annotations cannot be read: Unterminated string"):
        read(path, annotations=str(tmp_path / "cut.json"))
    path.write_text(json.dumps([{"image": "a.png", "question": "What?"}]))
    with pytest.raises(SourceError, match=r"format question, that of .*questions\.json, has no annotations of its own"):
        read(path, annotations=annotate(tmp_path, ANSWERS))


@pytest.mark.parametrize("is_sorted", [False, True])
def test_captions_of_coco_are_the_right_answers_about_each_image(
    is_sorted: bool, tmp_path: Path, draw: Draw, take_in: Callable[..., Any]
) -> None:
    for n in (1, 2, 3):
        (tmp_path / f"{n}.png").write_bytes(draw(seed=n))
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(CAPTIONS, sort_keys=is_sorted))
    rows = read(path, question="What is to be seen?")
    assert {row.format for row in rows} == {"coco-captions"}
    assert extras(rows) == [
        ("What is to be seen?", {"id": 1, "answers": ["A dog."]}),
        ("What is to be seen?", {"id": 2, "answers": ["A cat.", "A cat on a mat."]}),
        ("What is to be seen?", {"id": 3}),
    ]
    assert extras(read(path))[0][0] == "Describe this image."
    _, items = take_in(Source("s", str(path), respond=True))
    assert [(item["error"], item["responses"], item["source_preference"]) for item in items] == [(None, [], None)] * 3


def test_a_row_that_lacks_an_id_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = [*CAPTIONS["images"], {"file_name": "4.png"}, "x"]
    path.write_text(json.dumps(CAPTIONS | {"images": images}))
    rows = read(path)
    assert [row.error.kind if row.error else None for row in rows] == [None, None, None, "format", "row"]
    assert rows[3].error.message == "`id` should be a whole number or text, found null"


def test_an_object_that_breaks_off_gives_its_rows_and_says_where(tmp_path: Path, draw: Draw) -> None:
    path = vqa(tmp_path, draw)
    whole = path.read_text()
    path.write_text(whole[: whole.index("How many")])
    *good, bad = read(path)
    assert [row.error for row in good] == [None, None]
    assert (bad.error.kind, bad.locator) == ("file", "questions.json#2")
    path.write_text(whole + whole)
    assert [row.error for row in read(path)] == [None] * 6
    path.write_text(whole.replace('"license"', '"license" 1'))
    assert [row.error.kind if row.error else None for row in read(path)] == ["file"]


@pytest.mark.parametrize("rows", [[], ["What is it?"], [{"image_id": 42}], {"question": "What is it?"}])
def test_an_object_without_a_list_of_rows_is_one_row_that_is_an_error(rows: object, tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"questions": rows}))
    [row] = read(path)
    assert row.error.kind == "format"
    assert "no known format has these columns: questions (" in row.error.message


def test_rows_in_an_object_need_the_memory_of_a_few(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    rows = [{"image_id": n, "question": f"What is it, {n}?" * 20, "question_id": n} for n in range(20_000)]
    path.write_text(json.dumps({"info": {}, "questions": rows}))
    del rows
    tracemalloc.start()
    assert sum(1 for _ in read_records(*locate(str(path)))) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3


def test_easy_vqa_is_read_as_its_package_has_it(take_in: Callable[..., Any]) -> None:
    package = importlib.util.find_spec("easy_vqa")
    if package is None:
        pytest.skip("the package easy-vqa is not installed")
    folder = Path(package.origin).parent / "data" / "test"
    written = json.loads((folder / "questions.json").read_text())
    rows = read(folder, labels=True)
    assert len(rows) == len(written) == 9673
    assert {(row.format, row.error) for row in rows} == {("vqa", None)}
    assert [(row.preference.question, row.preference.extra["answer"]) for row in rows] == [
        (question, answer) for question, answer, _ in written
    ]
    intake = Intake(rows[0].source)
    for row, (_, _, number) in list(zip(rows, written, strict=True))[::97]:
        [image], item = intake(row)
        assert image["bytes"] == (folder / "images" / f"{number}.png").read_bytes()
        assert (item["error"], item["responses"], item["gold"]) == (None, [], None)


def test_lists_of_another_shape_are_row_errors(tmp_path: Path, draw: Draw) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([["What is it?", "a cat", 42], ["What is it?", 42], ["What is it?", "a cat", "42"]]))
    good, *bad = read(path)
    assert good.preference.extra == {"answer": "a cat", "image_id": 42}
    assert [row.error.message for row in bad] == ["a row should be an object, found list"] * 2


def test_samples_of_webdataset_are_questions(tmp_path: Path, draw: Draw, take_in: Callable[..., Any]) -> None:
    image, asked = draw("JPEG"), b'{"question": "What is it?", "answer": "A cat."}'
    members = {"0.jpg": image, "0.json": asked, "1.jpg": image, "1.txt": b"Which colour?\n", "2.json": asked}
    members |= {
        "3.jpg": image,
        "3.json": b'{"url": "x"}',
        "3.question.txt": b"How many?",
        "4.jpg": image,
        "5.jpg": image,
    }
    members |= {"5.json": b'{"question": "Why?"}', "5.txt": b"So.", "6.jpg": b"cut", "6.txt": b"What is it?"}
    path = tar(tmp_path / "questions.tar", members)
    rows = read(path)
    assert [(row.preference.question, row.preference.extra) if row.preference else row.error.kind for row in rows] == [
        ("What is it?", {"answer": "A cat."}),
        ("Which colour?\n", {}),
        ("What is it?", {"answer": "A cat."}),
        ("How many?", {}),
        "question",
        ("Why?", {"answer": "So."}),
        ("What is it?", {}),
    ]
    _, items = take_in(Source("s", str(path), respond=True))
    errors = Counter(item["error"]["kind"] for item in items if item["error"])
    assert errors == {"image_missing": 1, "question": 1, "image_broken": 1}


def test_captions_of_webdataset_are_right_answers_to_the_question_of_their_source(tmp_path: Path, draw: Draw) -> None:
    members = {"0.jpg": draw("JPEG"), "0.txt": b"A cat on a mat.", "0.json": b'{"url": "x", "width": 9}'}
    rows = read(tar(tmp_path / "captions.tar", members), question="Describe this image.")
    assert extras(rows) == [("Describe this image.", {"answer": "A cat on a mat."})]
