"""What a published judge tells those who use it."""

from carevl.models.judge_spec import JudgeSpec
from carevl.pipeline.publish import publish


def test_the_published_judge_keeps_the_bound_that_it_was_trained_with(tmp_path):
    phases = [tmp_path / phase for phase in ("sft", "dpo")]
    for phase in phases:
        (phase / "judge").mkdir(parents=True)
        JudgeSpec(resize_pixels=2000).write(phase / "judge")
    publish(phases, "base", tmp_path / "judge", "fingerprint", [])
    assert JudgeSpec.read(tmp_path / "judge").resize_pixels == 2000
