"""Engines by name, and a user's own by import path, in this process and in a fresh one."""

import os
import pickle
import subprocess
import sys

import pytest

from carevl.errors import UserError
from carevl.models.engines import ENGINES, generator, scorer
from carevl.models.engines.base import Generation
from carevl.settings.models import Expert, Judge

OWN = """
from carevl.models.engines.base import Engine, Generation

class Echo:
    def __init__(self, path):
        self.path = path
    def generate(self, requests, **arguments):
        return [Generation(f"{self.path} {request}", 1, False) for request in requests]
    def score(self, conversations):
        return [float(len(response)) for _, response in conversations]

class EchoEngine(Engine):
    name = "echo"
    def generator(self, model):
        return Echo(model.path)
    def scorer(self, model, *, batch_tokens, parity_tolerance):
        return Echo(model.path)

ECHO = EchoEngine()
NOT_ONE = Echo("x")
"""
FRESH = """
import pickle, sys
from carevl.models.engines import generator
judge = pickle.load(sys.stdin.buffer)
print(generator(judge).generate(["hello"], max_tokens=1)[0].text)
print(any(name in sys.modules for name in ("torch", "vllm", "transformers")))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "echo_engine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "echo_engine:ECHO"
    sys.modules.pop("echo_engine", None)


def _with_engine(model, engine):
    return model.model_copy(update={"engine": engine})


def test_the_engines_there_are():
    assert list(ENGINES) == ["vllm", "transformers"]


def test_an_own_engine_writes_and_scores(own):
    judge = _with_engine(Judge(path="somewhere"), own)
    assert generator(judge).generate(["hello"], max_tokens=1) == [Generation("somewhere hello", 1, False)]
    expert = _with_engine(Expert(name="x", path="somewhere"), own)
    assert scorer(expert).score([("turn", "abc")]) == [3.0]


def test_an_own_engine_is_imported_in_a_fresh_process_and_nothing_heavy_is(own, tmp_path):
    judge = pickle.dumps(_with_engine(Judge(path="somewhere"), own))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    fresh = subprocess.run([sys.executable, "-c", FRESH], input=judge, capture_output=True, check=True, env=environment)
    assert fresh.stdout.decode().split("\n")[:2] == ["somewhere hello", "False"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("vlm", "there is no engine 'vlm'; did you mean vllm"),
        ("no_such_module:ECHO", "no_such_module cannot be imported"),
        ("echo_engine:NOBODY", "echo_engine has no NOBODY"),
        ("echo_engine:NOT_ONE", "it is no carevl Engine"),
    ],
)
def test_a_name_that_is_no_engine_is_refused(own, engine, message):
    with pytest.raises(UserError, match=message):
        generator(_with_engine(Judge(path="somewhere"), engine))
