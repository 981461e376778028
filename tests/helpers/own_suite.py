"""The benchmark that docs/benchmarks.md defines, in files, as a user has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

_PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"
_SECTION = re.compile(
    r"## A benchmark of your own.*?```python\n(.+?)```.*?```json\n(.+?)```.*?```\ncarevl (.+?)\n```", re.DOTALL
)


@pytest.fixture
def own_suite(tmp_path: Path) -> list[str]:
    """Write `captions.py`, its rows and their image; return the words of the page's command after `carevl`."""
    match = _SECTION.search(_PAGE.read_text(encoding="utf-8"))
    assert match is not None
    module, rows, command = match.groups()
    (tmp_path / "captions.py").write_text(module)
    (tmp_path / "captions.jsonl").write_text(rows)
    Image.new("RGB", (84, 84), "red").save(tmp_path / "1.png")
    return command.split()
