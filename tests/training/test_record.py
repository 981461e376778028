"""Which changes of `batch_tokens` change nothing of what is learned."""

from __future__ import annotations

import json

import pytest

from carevl.settings.training import Training
from carevl.stages.train_rows import batch_token_facts, find_equal_training, training_inputs
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.training.record import FILE, TokenBounds, learned_differences


def _record(directory, longest, refused):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps({"batch_tokens": [longest, refused]}))


def _key(batch_tokens, **settings):
    training = training_inputs(Training(batch_tokens=batch_tokens, **settings))
    return StageKey("sft", {"inputs": {"demonstrate": "0"}, "training": training})


@pytest.mark.parametrize(("refused", "within", "beyond"), [(None, (300, 10**9), (299,)), (700, (300, 699), (299, 700))])
def test_bounds(tmp_path, refused, within, beyond):
    _record(tmp_path, 300, refused)
    bounds = TokenBounds.read(tmp_path)
    assert all(n in bounds for n in within)
    assert not any(n in bounds for n in beyond)
    assert bounds.facts == [300, refused]


def test_a_record_of_an_earlier_version_allows_nothing(tmp_path):
    (tmp_path / FILE).write_text("{}")
    assert 8192 not in TokenBounds.read(tmp_path)


def test_another_setting_is_still_a_difference(tmp_path):
    _record(tmp_path, 300, None)
    old, new = ({"settings": {"batch_tokens": n, "seed": seed}} for n, seed in ((8192, 0), (512, 1)))
    assert learned_differences(tmp_path, old, new, "settings") == ["settings.seed: 0 -> 1"]


def test_a_training_is_found_again_by_other_batch_tokens(tmp_path):
    run, key = Run(tmp_path), _key(8192)
    assert find_equal_training(run, _key(512)) == _key(512)
    run.table(key).begin(key.fingerprint_inputs)
    _record(run.table(key).directory, 300, 9000)
    assert find_equal_training(run, _key(512)) == key
    assert find_equal_training(run, key) == key
    for other in (_key(299), _key(9000), _key(512, seed=1)):
        assert find_equal_training(run, other) == other


def test_the_manifest_says_that_losses_agree_but_for_rounding():
    lines = []
    facts = batch_token_facts(_key(8192), Training(batch_tokens=512), lines.append)
    assert facts == {"batch_tokens": {"begun": 8192, "finished": 512}}
    assert lines == ["batch_tokens 8192 -> 512: the items are the same, and losses agree but for rounding"]
    assert batch_token_facts(_key(512), Training(batch_tokens=512), lines.append) == {}
