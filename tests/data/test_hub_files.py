"""Sources on the hub, against a stand-in of it: rows and images are read, and what is not there says so."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.data.drawn import DataRoot
from carevl.data.files import locate, stamp
from carevl.data.intake import Intake
from carevl.data.reading import Source, SourceRow, detect_formats, read_source
from carevl.errors import DataError
from carevl.settings.loader import load_settings
from carevl.stages.ingest import facts
from carevl.store.run import Run
from tests.helpers.hub import Hub

Draw = Callable[..., bytes]
NAME = "org/questions"
PATH = f"hf://datasets/{NAME}"


def shard(draw: Draw, first: int, n_rows: int = 20) -> bytes:
    """Rows as `datasets` stores them, with their images inside."""
    rows = [
        {"image": {"bytes": draw(seed=n), "path": f"{n}.png"}, "question": f"What is it, {n}?", "answer": str(n)}
        for n in range(first, first + n_rows)
    ]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=7)
    return out.getvalue()


@pytest.fixture
def served(hub: Hub, draw: Draw, tmp_path: Path) -> Hub:
    """A hub with a data set of two shards, and of lines about an image beside them."""
    (tmp_path / "empty").mkdir()
    line = json.dumps({"image": "images/a.png", "question": "What is it?", "answer": "A cat."})
    files = {"data/train-0.parquet": shard(draw, 0), "data/train-1.parquet": shard(draw, 20), "README.md": b"---\n"}
    files |= {"lines/rows.jsonl": line.encode(), "lines/images/a.png": draw(seed=99)}
    hub.add(NAME, tmp_path / "empty", more=files)
    return hub


def read(path: str, **options: Any) -> list[SourceRow]:
    return list(read_source(Source("s", path, respond=True, **options)))


def test_rows_and_images_are_read_where_they_are(served: Hub, draw: Draw) -> None:
    source = Source("s", PATH, respond=True)
    assert {Path(file).name: name for file, name in detect_formats(source).items()} == {
        "train-0.parquet": "question",
        "train-1.parquet": "question",
        "rows.jsonl": "question",
    }
    rows = read(f"{PATH}/data")
    assert [row.preference.question for row in rows] == [f"What is it, {n}?" for n in range(40)]
    assert rows[25].locator == "train-1.parquet#5"
    intake = Intake(rows[0].source)
    assert [intake(row)[0][0]["bytes"] for row in rows] == [draw(seed=n) for n in range(40)]
    [line] = read(f"{PATH}/lines/rows.jsonl")
    [image], item = Intake(line.source)(line)
    assert (image["bytes"], item["error"]) == (draw(seed=99), None)
    assert served.unknown == []
    assert not list(Path(served.environment(Path())["HF_HUB_CACHE"]).glob("**/*.parquet"))  # nothing is copied


def test_a_revision_is_read_as_it_was(served: Hub, draw: Draw, tmp_path: Path) -> None:
    old = served.repositories[NAME].branches["main"]
    before = read(f"{PATH}/data")
    served.add(NAME, tmp_path / "empty", more={"data/train-0.parquet": shard(draw, 50)})
    assert [row.preference for row in read(f"{PATH}@{old}/data")] == [row.preference for row in before]
    assert read(f"{PATH}/data")[0].preference.question == "What is it, 50?"


def test_contents_that_change_make_other_facts(served: Hub, draw: Draw, tmp_path: Path) -> None:
    file = f"{PATH}/data/train-0.parquet"
    first = stamp(*locate(file))
    assert first[:2] == [1, len(shard(draw, 0))]
    assert stamp(*locate(file)) == first
    settings = load_settings("mini", [f"data.sources=[{{path: '{file}'}}]", "benchmarks=[]"])
    inputs = facts(settings, DataRoot.of(settings, Run(tmp_path / "run")))
    assert inputs["files"] == {f"datasets/{NAME}/data/train-0.parquet": first}
    changed = bytearray(shard(draw, 0))
    changed[50] ^= 1
    served.add(NAME, tmp_path / "empty", more={"data/train-0.parquet": bytes(changed)})
    assert stamp(*locate(file))[:2] == first[:2]
    assert stamp(*locate(file)) != first


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/org/absent", "hf://datasets/org/absent: the hub has no such data set, or a private one; check"),
        (f"{PATH}@v9/data", f"{PATH}@v9/data: the hub has no such revision of it; name a branch, a tag or a commit"),
        (f"{PATH}/absent", f"datasets/{NAME}/absent: no such file or directory"),
        (f"{PATH}/README.md", f"datasets/{NAME}/README.md: not a known kind of file"),
        ("hf://datasets/org", "hf://datasets/org: a data set of the hub is hf://datasets/ORG/NAME"),
        ("hf://org/model", "hf://org/model: a data set of the hub is hf://datasets/ORG/NAME"),
        ("hf://datasets/o rg/na%20me", "hf://datasets/o rg/na%20me: it is no name of the hub; write hf://datasets/"),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_a_sentence(path: str, message: str, served: Hub) -> None:
    with pytest.raises(DataError) as failure:
        read(path)
    assert str(failure.value).startswith(message)
    assert "\n" not in str(failure.value)


def test_a_hub_that_is_gone_offline_or_overloaded_is_said_in_a_sentence(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="HF_HUB_OFFLINE forbids to ask the hub; unset it, or name a directory"):
            read(PATH)
    served.server.shutdown()
    served.server.server_close()
    with pytest.raises(DataError, match=r"the hub at http://127\.0\.0\.1:\d+ cannot be reached; try again with a"):
        read(PATH)


def test_a_gated_data_set_is_read_with_a_token_that_no_message_shows(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.gate(NAME)
    lost = read(f"{PATH}/data")
    assert {row.error.kind for row in lost} == {"file"}
    assert "it is gated; accept its terms at http://127.0.0.1" in lost[0].error.message
    assert served.token not in lost[0].error.message
    monkeypatch.setenv("HF_TOKEN", served.token)
    assert len(read(f"{PATH}/data")) == 40
    assert any(shown for _, _, shown in served.requests)
    assert not any(path.startswith("/cdn") and shown for _, path, shown in served.requests)


@pytest.mark.nightly  # huggingface_hub tries for 45 seconds
def test_a_hub_that_stays_overloaded_is_said_without_the_address_of_its_files(served: Hub) -> None:
    served.overloads = 1000
    [row] = read(f"{PATH}/data/train-1.parquet")
    assert row.error.kind == "file"
    assert "answered 503; try again later" in row.error.message
    assert "/cdn/" not in row.error.message
