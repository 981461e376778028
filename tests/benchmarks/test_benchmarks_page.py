"""The examples of docs/benchmarks.md work as they stand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from carevl import cli
from carevl.benchmarks.suites import SUITES

PAGE = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"### `(.+?)`.*?```json\n(.+?)```\n+```\ncarevl (.+?)\n```", PAGE, re.DOTALL)


def test_every_benchmark_has_an_example():
    assert [name for name, *_ in EXAMPLES] == list(SUITES)


@pytest.mark.parametrize(("name", "rows", "command"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_the_example_runs(name, rows, command, tmp_path, monkeypatch, capsys):
    words = command.split()
    assert words[words.index("--benchmark") + 1] == name
    monkeypatch.chdir(tmp_path)
    Path(words[words.index("--data") + 1]).write_text(rows)
    monkeypatch.setattr(sys, "argv", ["carevl", *words])
    with pytest.raises(SystemExit) as ended:
        cli.app.run_here()
    assert not ended.value.code
    figures = json.loads(Path(f"runs/{name}/figures.json").read_text())
    assert figures["rows"] == len(rows.splitlines())
    assert f"{name}: {figures['rows']} rows" in capsys.readouterr().out
