"""Made-up rows never crash a reader: each ends as an item or a row error that the tables take."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carevl.data.formats import FORMATS
from carevl.data.formats.detection import UnknownFormatError, columns_of, detect
from carevl.data.intake import Intake, merge_items
from carevl.data.reading import Source, SourceRow, read_source
from carevl.data.rows import Preference, RowError
from carevl.store.schemas import ITEMS

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "<image>", "<image>\n<image>", "\ud800", "a\0b", "5", "N/A", "1e999", "human", "gpt", "../x", "data:,", "{}"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=6)
COLUMNS = sorted({one for known in FORMATS.values() for names in known.columns for one in names.split("|")})
KEYS = ["from", "value", "role", "content", "type", "text", "response", "annotations", "bytes", "path", "Rating"]
KEYS += ["Helpfulness", "Ethical Considerations", "Visual Faithfulness", "question", "chosen", "rejected"]
ROLES = st.sampled_from(["human", "gpt", "user", "assistant", "system", "robot"])
TURNS = st.lists(
    st.fixed_dictionaries({"from": ROLES, "value": TEXT})
    | st.fixed_dictionaries(
        {"role": ROLES, "content": TEXT | st.lists(st.fixed_dictionaries({"type": TEXT, "text": TEXT}))}
    ),
    max_size=4,
)
VALUES = st.recursive(
    SCALAR | TURNS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _with_picture(preference: Preference) -> Preference:
    return replace(preference, images=[PICTURE for _ in preference.references])


def as_item(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The item that intake makes of a row whose image is a good one, checked against the schema."""
    source = Source("s", "data.jsonl")
    try:
        found = SourceRow(source, "data.jsonl#0", "", name, _with_picture(FORMATS[name].read(row)))
    except RowError as failure:
        found = SourceRow(source, "data.jsonl#0", "", name, error=failure)
    item = Intake(source)(found)[1]
    assert pa.Table.from_pylist(merge_items([item]), ITEMS).num_rows == 1
    return item


@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(data=st.data())
def test_any_values_in_a_formats_columns_end_as_item_or_error(name: str, data: st.DataObject) -> None:
    columns = [one for names in FORMATS[name].columns for one in names.split("|")]
    row = FORMATS[name].example | data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(columns, VALUES)))
    item = as_item(name, row)
    assert (item["error"] is None) == (item["question"] is not None)


@pytest.mark.parametrize("name", FORMATS)
def test_an_unharmed_row_ends_as_an_item(name: str) -> None:
    assert as_item(name, FORMATS[name].example)["error"] is None


@FEW
@given(row=st.dictionaries(st.sampled_from(COLUMNS) | TEXT, VALUES, max_size=7))
def test_detection_finds_a_format_or_says_why_not(row: dict[str, Any]) -> None:
    found = columns_of([row])
    for questions in (False, True):
        if all(known.lacking(found) for known in FORMATS.values() if questions or not known.of_questions):
            with pytest.raises(UnknownFormatError, match="Closest is"):
                detect(found, questions)
        else:
            assert not detect(found, questions).lacking(found)


@FEW
@given(
    question=st.text(min_size=1),
    responses=st.lists(st.text(max_size=8), max_size=5),
    ratings=st.none() | st.lists(st.floats() | st.integers() | st.just("3"), max_size=5),
)
def test_readable_items_keep_question_responses_and_ratings(
    question: str, responses: list[str], ratings: list[object] | None
) -> None:
    row = {"image": "x", "question": question, "responses": responses, "source_preference": ratings}
    try:
        found: Preference | None = FORMATS["items"].read(row)
    except RowError:
        found = None
    if found is None:
        return
    assert len(set(found.responses)) != 1
    assert len(found.responses) == len(responses)
    assert (found.preference is None) == (ratings is None)
    for text in (found.question, *found.responses):
        text.encode("utf-8")


@FEW
@given(data=st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "arrow", "tar", "jsonl.gz"])
def test_any_bytes_in_a_file_end_as_rows_or_errors(kind: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{kind}"
        path.write_bytes(data)
        rows = list(read_source(Source("s", str(path))))
    assert all((row.preference is None) != (row.error is None) for row in rows)


@FEW
@given(
    values=st.lists(
        st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists), max_size=6
    )
)
def test_json_arrays_and_lines_give_the_values_they_hold(values: list[Any]) -> None:
    import io

    from carevl.data.json_rows import json_values, line_values

    assert list(json_values(io.BytesIO(json.dumps(values, indent=2).encode()))) == values
    assert list(line_values(io.BytesIO("\n".join(map(json.dumps, values)).encode()))) == values
