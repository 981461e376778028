"""A directory of images with a list of questions, and what is wrong with either."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from carevl.data.describe import describe_source
from carevl.data.files import SourceError
from carevl.data.images import ImageLimits
from carevl.data.reading import Source, SourceRow, detect_formats, read_source
from carevl.settings.data import Source as SettingsSource

Draw = Callable[..., bytes]
QUESTIONS = [f"Question {n}?" for n in range(6)]


@pytest.fixture
def photos(tmp_path: Path, draw: Draw) -> Path:
    """Five images in a directory: of two kinds, one below it, one under a wrong ending and one under none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for n, name in enumerate(("b.jpg", "a.png", "below/c.webp", "d.txt", "e")):
        (folder / name).write_bytes(draw("JPEG" if name == "b.jpg" else "PNG", seed=n))
    return folder


def ask(folder: Path, text: str | bytes, name: str = "questions.txt", **options: Any) -> Source:
    file = folder.parent / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Source("s", str(folder), questions=str(file), respond=True, **options)


def asked(source: Source) -> dict[str, list[str]]:
    """Image to its questions."""
    found: dict[str, list[str]] = {}
    for row in read_source(source):
        found.setdefault(row.preference.images, []).append(row.preference.question)
    return found


def locators(rows: list[SourceRow]) -> list[str]:
    return [row.locator for row in rows]


def test_every_image_is_asked_every_question(photos: Path, take_in: Callable[..., Any]) -> None:
    (photos / "notes.md").write_text("no image")
    (photos / ".hidden.png").write_text("")
    source = ask(photos, "\ufeffWhat is it?\r\n\n  Which colour? \nWhat is it?\n")
    logged: list[str] = []
    rows = list(read_source(source, log=logged.append))
    names = ["a.png", "b.jpg", "below/c.webp", "d.txt", "e"]
    assert locators(rows) == [f"{name}#{line}" for name in names for line in (0, 2)]
    assert {(row.format, row.error) for row in rows} == {("question", None)}
    assert asked(source) == {name: ["What is it?", "Which colour?"] for name in names}
    assert logged == [
        "s: 1 files are of no kind that is read and were passed over: 1 .md",
        f"s: question in {source.questions}",
    ]
    images, items = take_in(source)
    assert [(item["error"], item["responses"]) for item in items] == [(None, [])] * 10
    assert Counter(image["format"] for image in images) == {"PNG": 8, "JPEG": 2}


def test_questions_are_drawn_for_each_image_whatever_the_others(photos: Path, draw: Draw) -> None:
    text = "\n".join(QUESTIONS)
    drawn = asked(ask(photos, text, questions_per_image=3, seed=7))
    assert [len(questions) for questions in drawn.values()] == [3] * 5
    assert all(questions == sorted(set(questions)) for questions in drawn.values())
    assert len({tuple(questions) for questions in drawn.values()}) > 1
    assert drawn != asked(ask(photos, text, questions_per_image=3, seed=8))
    (photos / "0.png").write_bytes(draw(seed=9))
    (photos / "e").unlink()
    backwards = "\n".join(reversed(QUESTIONS))
    others = asked(ask(photos, backwards, questions_per_image=3, seed=7))
    assert {name: sorted(others[name]) for name in drawn if name != "e"} == {
        name: questions for name, questions in drawn.items() if name != "e"
    }
    assert asked(ask(photos, text, questions_per_image=9))["a.png"] == QUESTIONS


def test_a_file_with_the_name_of_an_image_is_a_row_error(photos: Path, take_in: Callable[..., Any]) -> None:
    (photos / "page.jpg").write_text("<html>404</html>")
    (photos / "zero.png").write_bytes(b"")
    _, items = take_in(ask(photos, "What is it?"))
    assert Counter(item["error"]["kind"] if item["error"] else None for item in items) == {None: 5, "image_broken": 2}


def test_a_video_is_shown_as_one(photos: Path) -> None:
    (photos / "clip.mp4").write_bytes(b"")
    rows = {row.locator: row for row in read_source(ask(photos, "What happens?"))}
    assert type(rows["clip.mp4#0"].preference.references[0]).__name__ == "VideoReference"


def test_questions_in_a_file_of_rows_name_their_images(photos: Path, take_in: Callable[..., Any]) -> None:
    rows = [{"image": name, "prompt": "What is it?"} for name in ("a.png", "below/c.webp", "absent.png")]
    source = ask(photos, "".join(json.dumps(row) + "\n" for row in rows), "questions.jsonl")
    assert list(detect_formats(source).values()) == ["question"]
    assert locators(list(read_source(source))) == [f"questions.jsonl#{n}" for n in range(3)]
    _, items = take_in(source)
    [error] = [item["error"] for item in items if item["error"]]
    assert (error["kind"], error["message"]) == (
        "image_missing",
        "'absent.png': no such file in the directory of its source",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no question; write one a line"),
        (" \n\n", "there is no question; write one a line"),
        (b"What?\nWhich caf\xe9?\n", "line 2 is not UTF-8: invalid continuation byte; write it anew as UTF-8"),
    ],
)
def test_a_list_without_questions_is_refused(text: str | bytes, message: str, photos: Path) -> None:
    source = ask(photos, text)
    with pytest.raises(SourceError) as failure:
        list(read_source(source))
    assert str(failure.value) == f"{source.questions}: {message}"


def test_a_list_or_a_directory_that_is_absent_is_refused(photos: Path, tmp_path: Path) -> None:
    absent = Source("s", str(photos), questions=str(tmp_path / "absent.txt"), respond=True)
    with pytest.raises(SourceError, match=r"absent\.txt: the list of questions cannot be read: "):
        list(read_source(absent))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: 0 files, none of them an image"):
        list(read_source(ask(tmp_path / "empty", "What?")))
    with pytest.raises(SourceError, match=r"a\.png: no such directory; `questions` are asked about the images in one"):
        list(read_source(ask(photos / "a.png", "What?", "../questions.txt")))
    with pytest.raises(SourceError, match="questions_per_image draws from a list of questions, and this is a file of"):
        list(read_source(ask(photos, "{}", "questions.jsonl", questions_per_image=2)))
    with pytest.raises(ValidationError, match="questions_per_image draws from a list of questions: name one in"):
        SettingsSource(path=str(photos), questions_per_image=2)


def test_a_list_is_described_as_one_file(photos: Path) -> None:
    source = ask(photos, "What is it?\nWhich colour?")
    lines = list(describe_source(source, 1000, ImageLimits()))
    assert lines == [
        f"{source.questions}: question, 10 rows, 0 with an error, 10 without responses, which respond.models write"
    ]
