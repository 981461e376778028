"""`carevl sources`: the sources of settings as a run reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from carevl.data.formats import FORMATS
from carevl.settings.loader import PRESETS
from tests.cli.test_hostile_paths import run_main

SPA_VL = FORMATS["spa-vl"].example
LLAVA = FORMATS["llava-rlhf"].example


@pytest.fixture
def settings(tmp_path: Path, write_lines: Callable[..., Path], draw: Callable[..., bytes]) -> Path:
    """Settings with two sources, whose images lie apart."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(draw(size=(30, 20)))
    (tmp_path / "captions.json").write_text('{"a.png": "A cat."}')
    odd = SPA_VL | {"ds_name": "looks like rlaif-v"}
    sources: list[dict[str, Any]] = [
        {"name": "named", "path": str(write_lines([odd], "odd.jsonl")), "format": "spa-vl", "split": "dev"},
        {"path": str(write_lines([LLAVA] * 3, "llava.jsonl")), "captions": str(tmp_path / "captions.json")},
    ]
    sources = [source | {"image_root": str(tmp_path / "images")} for source in sources]
    path = tmp_path / "mine.yaml"
    tree = yaml.safe_load((PRESETS / "mini.yaml").read_text())
    path.write_text(json.dumps(tree | {"data": {"sources": sources, "max_image_pixels": 700}, "benchmarks": []}))
    return path


def lines(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> list[str]:
    assert run_main(["sources", *words]) == status
    printed = capsys.readouterr()
    return [*printed.out.splitlines(), *printed.err.splitlines()]


def test_sources_of_settings_are_read_as_a_run_reads_them(settings, tmp_path, capsys):
    root = f'image_root: "{tmp_path}/images"'
    assert lines(capsys, str(settings)) == [
        f'named: {tmp_path}/odd.jsonl, format: "spa-vl", split: "dev", {root}',
        f"{tmp_path}/odd.jsonl: spa-vl, 1 rows, 0 with an error",
        f'source-1: {tmp_path}/llava.jsonl, {root}, captions: "{tmp_path}/captions.json"',
        f"{tmp_path}/llava.jsonl: llava-rlhf, 3 rows, 0 with an error",
    ]


def test_bounds_of_settings_hold(settings, capsys):
    found = lines(capsys, str(settings), "--set", "data.max_image_pixels=599", "--rows", "2")
    assert "  1 image_too_large, first row 0: 30 x 20 pixels, over max_image_pixels 599" in found
    assert found[-2].endswith("llava.jsonl: llava-rlhf, first 2 rows, 2 with an error")


def test_bounds_of_items_and_sources_about_text_hold(settings, write_lines, capsys):
    trl = FORMATS["trl"].example
    path = str(write_lines([trl | {"images": ["a.png", "a.png"]}, trl | {"images": None}], "trl.jsonl"))
    words = [
        "--set",
        "data.max_images=1",
        "--set",
        f"data.sources.0.path={path}",
        "--set",
        "data.sources.0.format=null",
    ]
    found = lines(capsys, str(settings), *words)
    assert f"{path}: trl, 2 rows, 2 with an error" in found
    assert "  1 images_many, first row 0: 2 images, more than data.max_images = 1 allows" in found
    found = lines(capsys, str(settings), *words, "--set", "data.sources.0.text_only=true")
    assert "text_only: true" in found[0]
    assert f"{path}: trl, 2 rows, 1 with an error" in found


def test_a_source_that_cannot_be_read_is_named_after_the_others(settings, capsys):
    found = lines(capsys, str(settings), "--set", "data.sources.0.path=/nowhere", status=2)
    assert any(line.endswith("llava-rlhf, 3 rows, 0 with an error") for line in found)
    assert "named: /nowhere: no such file or directory" in found[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mini", "--image-root", "x"], "--format and --image-root are for a path"),
        (["data.jsonl", "--set", "seed=1"], "--set is for settings"),
        (["--set", "seed=1"], "--set is for settings"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(words, message, capsys):
    assert message in lines(capsys, *words, status=2)[-1]
