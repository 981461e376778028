"""`miniworld:` draws into a run directory: whole, once, or with a message."""

from pathlib import Path

import pytest

from carevl.errors import UserError
from carevl.miniworld.scheme import MINIWORLD
from carevl.settings.loader import load_settings


def test_test_scenes_are_drawn_once_and_anew_after_an_interruption(tmp_path: Path) -> None:
    half = tmp_path / "world-final-42" / "test" / "vl_rewardbench.parquet"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    file = MINIWORLD.draw_test(tmp_path, 42)
    assert file == half
    assert file.read_bytes() != b"half"
    drawn = file.stat().st_mtime_ns
    assert MINIWORLD.draw_test(tmp_path, 42).stat().st_mtime_ns == drawn


def test_worlds_of_other_settings_lie_apart(tmp_path: Path) -> None:
    names = {
        MINIWORLD.data_directory(load_settings("mini", [f"miniworld.{change}"]))
        for change in ("items=5", "items=6", "calibration_images=5", "seed=5")
    }
    assert names == {"world-5-3000-7", "world-6-3000-7", "world-640-5-7", "world-640-3000-5"}
    assert not MINIWORLD.is_drawn(load_settings("mini", []), tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot draw the world .*/run/world-640-3000-7"):
        MINIWORLD.draw(load_settings("mini", []), tmp_path / "run")
