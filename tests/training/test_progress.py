"""What is said of the last steps."""

from __future__ import annotations

import pytest

from carevl.training.progress import Progress, StepLog, read_log


def _step(number, **facts):
    return {"step": number, "loss": 2.0, "tokens": 300, "seconds": {"data": 0.5, "forward": 1.0}} | facts


BETA = 0.1


def _dpo(number, chosen, rejected):
    """A step of dpo whose chosen and rejected judgments are so many nats from the reference."""
    rewards = {"rewards/chosen": BETA * chosen, "rewards/rejected": BETA * rejected}
    return _step(number, **rewards, **{"rewards/accuracies": 0.75, "rewards/margins": 0.5})


def test_rate_and_time_left_follow_from_the_last_ten_steps():
    slow = [_step(n, seconds={"data": 90.0}) for n in range(1, 4)]
    progress = Progress.of([*slow, *(_step(n, loss=float(n)) for n in range(4, 14))], 20, BETA)
    assert progress.loss == pytest.approx(8.5)
    assert progress.tokens_per_second == pytest.approx(200.0)
    assert progress.seconds_left == pytest.approx(7 * 1.5)
    assert progress.line() == "step 13/20  loss 8.5000  200 tokens/s  10 s left"


def test_a_line_of_dpo_shows_accuracy_and_margin():
    line = Progress.of([_dpo(1, 0.0, 0.0)], 2, BETA).line()
    assert line == "step 1/2  loss 2.0000  accuracy 0.75  margin 0.500  200 tokens/s  2 s left"


@pytest.mark.parametrize(
    ("chosen", "rejected", "steps", "warns"),
    [(-2.0, -5.0, 12, True), (-2.0, -5.0, 9, False), (0.5, -5.0, 12, False), (-0.5, -0.5, 12, False)],
)
def test_a_warning_when_chosen_and_rejected_both_fall(chosen, rejected, steps, warns):
    progress = Progress.of([_dpo(n, chosen, rejected) for n in range(1, steps + 1)], 20, BETA)
    assert ("chosen (-2.0 nats) and rejected (-5.0) both fall" in (progress.warning or "")) == warns
    assert ("warning: " in progress.line()) == warns


def test_a_log_that_an_earlier_version_began_is_summarised():
    old = _step(1, accuracy=0.5, margin=0.1, chosen_shift=-9.0, rejected_shift=-9.0)
    assert Progress.of([old], 20, BETA).accuracy is None
    progress = Progress.of([old] * 5 + [_dpo(n, 0.5, -5.0) for n in range(6, 11)], 20, BETA)
    assert (progress.loss, progress.accuracy, progress.margin, progress.warning) == (2.0, 0.75, 0.5, None)


def test_a_resumed_log_forgets_the_steps_after_its_checkpoint(tmp_path):
    file = tmp_path / "steps.jsonl"
    log = StepLog(file, 0)
    for n in range(1, 6):
        log.write(_step(n))
    with file.open("a") as stream:
        stream.write('{"step": 6, "lo')
    StepLog(file, 3).write(_step(4, loss=1.0))
    assert [(facts["step"], facts["loss"]) for facts in read_log(file)] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 1.0)]
