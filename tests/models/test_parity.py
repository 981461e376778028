"""What an engine's scores are held against: kept for all actors of an expert, on the scale of the noise of 16 bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines.parity import (
    SAMPLE,
    Parity,
    Reference,
    check_parity,
    compare_logprobs,
    find_reference,
    keep_references,
    measure_parity,
)
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.engines.vllm import VllmGenerator
from carevl.models.reward_scorer import RewardScorer
from carevl.settings.models import Expert, Judge, Pool

EXPERT = Expert(name="x", path="miniworld:expert-llama")
LOADING = """
import sys
from pathlib import Path
import torch
from carevl.models import reward_scorer
from carevl.models.engines.parity import find_reference, keep_references
from carevl.settings.models import Expert
loaded = reward_scorer.RewardScorer.__init__
def counted(self, *arguments, **keywords):
    with open(sys.argv[1] + "/loads", "a") as loads:
        loads.write("x")
    loaded(self, *arguments, **keywords)
reward_scorer.RewardScorer.__init__ = counted
with keep_references(Path(sys.argv[1])):
    print(find_reference(Expert(name="x", path="miniworld:expert-llama"), "CPU").scores)
"""


def test_an_engine_that_disagrees_with_its_reference_is_refused_with_the_numbers():
    reference = Reference([1.0, -2.0], 0.0)
    with pytest.raises(UserError, match=r"disagree by up to 0\.3, and parity_tolerance 0\.05 allows 0\.1: .* 1, -1\.7"):
        check_parity("experts/eight", reference, [1.0, -1.7], 0.05)
    with pytest.raises(UserError, match="vllm gives nan, -2 for a sample of texts"):
        check_parity("experts/eight", reference, [float("nan"), -2.0], 0.05)
    check_parity("experts/eight", reference, [1.05, -2.05], 0.05)


def test_small_scores_in_16_bits_may_be_off_by_their_own_noise():
    check_parity("x", Reference([0.1, -0.2], 0.1), [0.4, -0.2], 0.05)
    with pytest.raises(UserError, match=r"disagree by up to 0\.5, .* allows 0\.4"):
        check_parity("x", Reference([0.1, -0.2], 0.1), [0.6, -0.2], 0.05)


@pytest.mark.vllm
def test_the_weights_are_read_once_by_processes_that_start_together(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0].splitlines()[-1] for process in started}
    assert printed == {str(RewardScorer(WEIGHTS / "expert-llama").score(SAMPLE))}
    assert (tmp_path / "loads").read_text() == "x"


@pytest.mark.vllm
def test_another_dtype_or_card_has_a_reference_of_its_own(tmp_path):
    with keep_references(tmp_path):
        exact = find_reference(EXPERT, "CPU")
        rounded = find_reference(EXPERT.model_copy(update={"dtype": "bfloat16"}), "CPU")
        find_reference(EXPERT, "NVIDIA H100")
    assert exact.noise == 0.0
    assert rounded.scores != exact.scores
    assert len(list(tmp_path.glob(".reference-*.json"))) == 3


@pytest.mark.vllm
def test_vllm_is_told_from_transformers_where_it_reads_images_causally(family_directory, tmp_path):
    judge = Judge(path=str(family_directory("gemma4")), engine="vllm", max_model_len=1024, pool=Pool(batch_size=8))
    engines = []

    def start():
        engines.append(VllmGenerator(judge))
        return engines[0]

    with keep_references(tmp_path):
        parity = measure_parity(judge, "CPU", lambda: ImageTextGenerator(judge.path), start)
        assert not parity.holds
        assert parity.difference > 5 * parity.allowed
        engines[0].close()
        assert measure_parity(judge, "CPU", pytest.fail, pytest.fail) == parity


def test_likely_words_alone_are_compared_and_in_16_bits_their_noise_is_allowed():
    assert compare_logprobs(Reference([-1.0, -20.0], 0.0), [-1.001, -30.0], is_exact=True).holds
    assert not compare_logprobs(Reference([-1.0, -20.0], 0.0), [-1.01, -20.0], is_exact=True).holds
    assert not compare_logprobs(Reference([-1.0, -20.0], 0.0), [-1.0, float("nan")], is_exact=False).holds
    assert compare_logprobs(Reference([-1.0], 0.0), [-1.2], is_exact=False) == Parity(pytest.approx(0.2), 0.25)
    assert compare_logprobs(Reference([-1.0], 0.1), [-1.3], is_exact=False).allowed == pytest.approx(0.4)
