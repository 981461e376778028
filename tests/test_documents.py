"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import carevl

ROOT = Path(carevl.__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")])
HISTORY = ("CHANGELOG.md",)  # names what was there
ROOMS = "|".join(path.name for path in (ROOT / "carevl").iterdir() if (path / "__init__.py").is_file())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document):
    text = document.read_text() if document.name not in HISTORY else ""
    named = re.findall(r"(?<![\w/.-])((?:carevl|tests|ray_jobs|docs)/[a-z\d_/.-]*\w)(?![\w*])", text)
    named += [f"carevl/{name}" for name in re.findall(rf"`((?:{ROOMS})/[a-z\d_/]+\.py)`", text)]
    named = [name for name in named if not re.search(r"[/_]mine\.py$", name)]  # those of a recipe's reader
    missing = [name for name in sorted(set(named)) if not (ROOT / name).exists()]
    assert not missing, f"{document.name} names {', '.join(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_that_a_document_names_are_there(document):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", document.read_text(), flags=re.MULTILINE))
    assert named <= targets
