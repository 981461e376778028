"""WebDataset: which members are one sample."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from carevl.data.rows import RowError
from carevl.data.tar_rows import tar_samples

COLUMNS = {"question": "Q?", "chosen": "a", "rejected": "b"}
JSON = json.dumps(COLUMNS).encode()


def rows(*members: str | tuple[str, bytes]) -> list[dict[str, Any] | RowError]:
    """The rows of an archive; a member without data is JSON of the columns, or its own name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            name, data = member if isinstance(member, tuple) else (member, None)
            data = data if data is not None else JSON if name.endswith("json") else name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stream.seek(0)
    return list(tar_samples(stream))


def image(name: str) -> dict[str, Any]:
    return {"bytes": name.encode(), "path": name}


@pytest.mark.parametrize("key", ["page.05", "d.e/page.05", "page"])
def test_keys_may_have_dots_whatever_comes_first(key: str) -> None:
    other = f"{key}x.1"
    for endings in (("json", "png"), ("png", "json"), ("png", "json", "cls")):
        names = [f"{one}.{ending}" for one in (key, other) for ending in endings]
        assert rows(*names) == [COLUMNS | {"image": image(f"{one}.png")} for one in (key, other)]


def test_texts_and_several_images_belong_to_the_key_before_their_names() -> None:
    texts = [f"a.7.{name}.txt" for name in COLUMNS]
    assert rows(*texts, "a.7.webp", "a.8.json", "a.8.l.png", "a.8.r.png") == [
        {name: f"a.7.{name}.txt" for name in COLUMNS} | {"image": image("a.7.webp")},
        COLUMNS | {"images": [image("a.8.l.png"), image("a.8.r.png")]},
    ]


def test_videos_are_members_as_images_are() -> None:
    told = ("2.json", json.dumps(COLUMNS | {"video": "2.clip.mp4"}).encode())
    assert rows("1.json", "1.mp4", told, "2.clip.mp4", "3.json", "3.png", "3.webm") == [
        COLUMNS | {"video": image("1.mp4")},
        COLUMNS | {"video": image("2.clip.mp4")},
        COLUMNS | {"image": image("3.png"), "video": image("3.webm")},
    ]


def test_what_systems_add_to_archives_is_left_out() -> None:
    noise = ["._0.json", "__MACOSX/0.json", ".DS_Store", "README"]
    assert rows(*noise, "0.json", "._0.png", "0.png") == [COLUMNS | {"image": image("0.png")}]


def test_texts_that_are_not_utf8_cost_their_sample() -> None:
    bad = [("0.question.txt", b"\xe9"), ("1.json", b'{"question": "\xe9"}')]
    for error, good in (rows(bad[0], "2.json"), rows(bad[1], "2.json")):
        assert isinstance(error, RowError)
        assert "UTF-8" in error.message
        assert good == COLUMNS
