"""The shipped judge behind a real vLLM server says over HTTP what it says in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import carevl
from carevl.benchmarks.answering import EngineJudge, judge_questions, load_judge
from carevl.benchmarks.suites import SUITES
from carevl.data.images import ImageLimits, decode_rgb
from carevl.errors import UserError
from carevl.models.locate import locate
from carevl.settings.models import Judge

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
SERVER = "vllm.entrypoints.openai.api_server"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_MLA_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = Path(carevl.__file__).parent / "_site"
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    options = f"--served-model-name tiny --dtype float32 --max-model-len 512 --enforce-eager --port {port}"
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                SERVER,
                "--model",
                locate("miniworld:judge"),
                "--host",
                "127.0.0.1",
                *options.split(),
            ],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1#tiny"
    finally:
        server.terminate()
        server.wait(60)


def _answers(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def ask(small_world):
    """Asks a judge about some rows of every task by protocols; returns predictions."""
    suite = SUITES["mllm-judge"]
    rows = suite.load(small_world / "dev/mllm_judge")
    chosen = [row for task in ("pointwise", "pairwise", "ranking") for row in [r for r in rows if r.task == task][:4]]
    pictures = {row.shown: decode_rgb(row.images[0].read(), ImageLimits(), None) for row in chosen}

    def answer(judge, *protocols, **options):
        questions = [question for protocol in protocols for question in suite.questions(chosen, protocol)]
        return judge_questions(judge, "j", suite, questions, pictures, 0, max_images=8, **options)

    return answer


def test_texts_verdicts_and_probabilities_are_those_of_the_model(address, ask):
    served = ask(load_judge(Judge(path=address, max_tokens=80)), "strict", "verdict_prob")
    local = EngineJudge(Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=80))
    expected = ask(local, "strict", "verdict_prob")
    assert [each.text for each in served] == [each.text for each in expected]
    assert [each.status for each in served] == [each.status for each in expected]
    assert sum(each.probability is not None for each in served) == 16
    assert [each.probability for each in served] == pytest.approx([each.probability for each in expected], abs=1e-3)


def test_a_cut_judgment_goes_on_with_its_verdict(address, ask):
    cut = ask(load_judge(Judge(path=address, max_tokens=3)), "strict", force_verdicts=True)
    local = EngineJudge(Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=3))
    expected = ask(local, "strict", force_verdicts=True)
    assert [(each.text, each.status, each.forced) for each in cut] == [
        (each.text, each.status, each.forced) for each in expected
    ]
    assert sum(each.forced for each in cut) >= 12
    assert [each.probability for each in cut] == pytest.approx([each.probability for each in expected], abs=1e-3)


def test_what_the_server_refuses_is_said_once(address, ask):
    with pytest.raises(UserError, match=r"status 404.*check the address, the model other and the key"):
        ask(load_judge(Judge(path=address.replace("#tiny", "#other"))), "strict")
    asked_for_more = load_judge(Judge(path=address, endpoint={"extra_body": {"top_logprobs": 50}}))
    with pytest.raises(UserError, match=r"endpoint\.extra_body sets top_logprobs"):
        ask(asked_for_more, "strict")
