"""What lies beside a judge's weights for its users."""

import json

import pytest

from carevl.errors import UserError
from carevl.models.judge_spec import FILE, JudgeSpec
from carevl.settings.models import Judge


def test_what_is_written_is_read(tmp_path):
    JudgeSpec(resize_pixels=1000).write(tmp_path)
    assert json.loads((tmp_path / "carevl.json").read_text()) == {"resize_pixels": 1000}
    assert JudgeSpec.read(tmp_path).resize_pixels == 1000


def test_defaults_leave_a_directory_as_it_is(tmp_path):
    JudgeSpec().write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert JudgeSpec.read(tmp_path) == JudgeSpec()
    assert JudgeSpec.of(Judge(path="miniworld:judge")) == JudgeSpec()


def _state(file):
    """What writing a file changes, and reading it does not."""
    state = file.stat()
    return state.st_ino, state.st_mtime_ns


def test_a_directory_that_says_the_same_is_left_alone(tmp_path):
    JudgeSpec(resize_pixels=1000).write(tmp_path)
    before = _state(tmp_path / FILE)
    JudgeSpec(resize_pixels=1000).write(tmp_path)
    assert _state(tmp_path / FILE) == before
    JudgeSpec().write(tmp_path)
    assert JudgeSpec.read(tmp_path) == JudgeSpec()


def test_an_adapter_speaks_for_the_judge_that_it_makes(tmp_path):
    for name, pixels in (("weights", 1000), ("adapter", 2000)):
        (tmp_path / name).mkdir()
        JudgeSpec(resize_pixels=pixels).write(tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / name).touch()
    judge = Judge(path=str(tmp_path / "weights"))
    assert JudgeSpec.of(judge).resize_pixels == 1000
    assert JudgeSpec.of(judge.model_copy(update={"adapter": str(tmp_path / "adapter")})).resize_pixels == 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "carevl.json: Invalid JSON"),
        ('{"resize_pixels": 0}', "carevl.json: resize_pixels: Input should be greater than or equal to 1"),
        ('{"verdict": "x"}', "carevl.json: verdict: Extra inputs are not permitted; it was damaged, or written by a"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        JudgeSpec.read(tmp_path)
