"""Changed bytes of sources: `python -m tests.data.fuzz` finds no fault, and would find one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from carevl.data.formats import FORMATS
from carevl.data.intake import Intake
from carevl.data.reading import SourceRow, read_source
from tests.data import fuzz
from tests.data.fuzz_cases import Case, make_cases
from tests.helpers.image_kinds import KINDS

CHANGES = 5000
FEW = 60


def test_sources_are_of_every_format_container_and_kind_of_image() -> None:
    cases = list(make_cases())
    assert {case.name.partition(" ")[0] for case in cases} == set(FORMATS)
    assert {case.ending for case in cases} == {"json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "tar"}
    assert sum(len(case.files) for case in cases) > 2 * len(KINDS)


def test_every_row_of_an_intact_source_is_an_item(tmp_path: Path) -> None:
    cases = [case for case in make_cases() if case.data in ("data.jsonl", "data.tar")]
    fuzz.Sources(tmp_path, cases)  # raises where one is not
    assert {case.name.partition(" ")[0] for case in cases} == set(FORMATS)


@pytest.fixture
def few() -> list[Case]:
    return list(itertools.islice(make_cases(), 0, None, 17))


def faults(sources: fuzz.Sources) -> list[str]:
    outcomes = [sources.read_changed(0, number) for number in range(FEW)]
    return [outcome["fault"][0] for outcome in outcomes if outcome["fault"]]


def test_some_changes_end_as_items_and_row_errors(few: list[Case], tmp_path: Path) -> None:
    assert faults(fuzz.Sources(tmp_path, few)) == []


def test_a_reader_that_drops_rows_is_found_out(
    few: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = fuzz.Sources(tmp_path, few)
    monkeypatch.setattr(fuzz, "read_source", lambda source: list(read_source(source))[:-1])
    assert "lost" in faults(sources)


def test_intake_that_raises_or_takes_one_row_for_another_is_found_out(
    few: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = fuzz.Sources(tmp_path, few)

    class Wrong(Intake):
        def with_signatures(self, row: SourceRow):
            if row.error is not None:
                raise ValueError("an error in the way")
            images, item, signatures = super().with_signatures(row)
            return images, item | {"item_id": "another"}, signatures

    monkeypatch.setattr(fuzz, "Intake", Wrong)
    assert {"crashes", "altered"} <= set(faults(sources))


@pytest.mark.ray
@pytest.mark.nightly
def test_no_change_crashes_or_loses_a_row() -> None:
    summary = fuzz.summarise(CHANGES, seed=0)
    assert summary["faults"] == []
    assert summary["changes"] == CHANGES
    assert min(summary["items"], *summary["errors"].values()) > 0
