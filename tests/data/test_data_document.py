"""Every example of docs/data.md is what it says, and every list of it is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from carevl.data.containers import CONTAINERS
from carevl.data.formats import FORMATS
from carevl.data.formats.detection import columns_of
from carevl.data.perceptual_hash import MOST_BITS, MOST_COLOUR
from carevl.data.reading import Source, detect_formats
from carevl.data.rows import ErrorKind, RowError
from carevl.export.writers import WRITERS
from carevl.settings.data import Data
from carevl.store.schemas import CONTAMINATED

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^##+ (\S[^\n]*)\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return found


def column(section: str) -> list[str]:
    """The names in the first column of a section's tables."""
    found: list[str] = re.findall(r"^\| `([^`]+)` \|", SECTIONS[section], re.MULTILINE)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_is_detected_and_read_into_an_item(
    name: str, write_lines: Callable[..., Path], tmp_path: Path, draw: Callable[..., bytes], take_in: Callable[..., Any]
) -> None:
    [block] = blocks(name, "json")
    row = json.loads(block)
    assert row == FORMATS[name].example
    (tmp_path / "a.png").write_bytes(draw())
    source = Source("mine", str(write_lines([row])), respond=FORMATS[name].of_questions)
    assert list(detect_formats(source).values()) == [name]
    _, [item] = take_in(source)
    assert item["error"] is None
    assert item["question"] == "What is it?"
    if FORMATS[name].of_questions:
        extra = json.loads(item["sources"][0]["extra"])
        assert (item["responses"], extra.get("answer") or extra["answers"][0]) == ([], "A cat.")
        return
    best = item["responses"][item["source_preference"].index(max(item["source_preference"]))]
    assert (best, sorted(item["responses"])) == ("A cat.", ["A cat.", "A dog."])


def test_the_format_of_ones_own_reads_its_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [block] = blocks("A format of your own", "python")
    (tmp_path / "my_formats.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    mine = FORMATS["my_formats:MINE"]
    assert mine.lacking(columns_of([mine.example])) == []
    read = mine.read(mine.example)
    assert (read.question, read.references) == ("What is it?", ("a.png",))
    assert dict(zip(read.responses, read.preference or (), strict=True)) == {"A cat.": 1, "A dog.": 0}
    with pytest.raises(RowError, match="`win` should be text, found null"):
        mine.read(mine.example | {"win": None})


def test_the_settings_are_settings() -> None:
    declared = [
        Data.model_validate(yaml.safe_load(block)["data"]) for block in blocks("Sources in the settings", "yaml")
    ]
    sources = declared[0].sources
    assert [source.labels for source in sources] == [False, False, True]
    assert [source.text_only for source in declared[1].sources] == [False, False, False, True]
    named = re.search(r"may have: (.*?)\n\(", SECTIONS["Sources in the settings"], re.DOTALL)
    assert named
    assert set(re.findall(r"`(\w+)`", named[1])) == set(type(sources[0]).model_fields)


def test_every_row_error_and_export_format_is_listed() -> None:
    assert set(column("Row errors")) == {*get_args(ErrorKind), CONTAMINATED}
    assert set(WRITERS) < set(column("Export"))


def test_numbers_and_containers_are_those_of_the_code() -> None:
    assert f"at most {MOST_BITS} bits" in SECTIONS["Near-duplicates"]
    assert f"more than {MOST_COLOUR} of 255" in SECTIONS["Near-duplicates"]
    for name, documented in {"Parquet": ".parquet", "JSON Lines": ".jsonl", "`.bz2`": ".jsonl.bz2"}.items():
        assert name in DOCUMENT
        assert documented in CONTAINERS
    assert Data.model_fields["max_image_pixels"].default == 50_000_000
