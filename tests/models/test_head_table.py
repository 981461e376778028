"""The table of heads in `docs/models.md` against a fresh measurement; tests/models/test_heads.py measures vLLM."""

from __future__ import annotations

import pytest

from tests.helpers.heads import CASES, REFUSED
from tests.models.head_table import find_words, measure, refused_row, stored_table

pytestmark = pytest.mark.vllm

_CLOSE = 1e-4


def _rows():
    return stored_table().splitlines()[2:]


def test_the_document_has_every_head_and_no_other():
    names = [line.strip("| ").split(" | ")[0] for line in _rows()]
    assert names == [case.name for case in (*CASES, *REFUSED)]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_the_document_says_of_a_head_that_is_read_holds(case):
    [stored] = [line for line in _rows() if line.startswith(f"| {case.name} | read |")]
    cells = [cell.strip() for cell in stored.strip("|").split("|")][2:]
    assert max(float(cell) for cell in cells if cell != "runs in transformers") < _CLOSE
    assert ("runs in transformers" in cells) == (case.code is not None)
    assert measure(case, "transformers") < _CLOSE


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_what_the_document_says_of_a_head_that_is_refused_holds(case):
    assert refused_row(case, find_words(case)) in _rows()
