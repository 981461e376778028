"""The examples of docs/models.md work."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import carevl
from carevl.models.engines import ENGINES, generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.experts import EXPERT_KINDS
from carevl.models.families import FAMILIES
from carevl.settings.models import Captioner, Expert, Judge

TEXT = (Path(carevl.__file__).parents[1] / "docs" / "models.md").read_text()
SETTINGS, ENGINE, EXPERTS, KIND, ASKING, FAMILY = (
    code for _, code in re.findall(r"^```(yaml|python)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "documented.py").write_text(ENGINE + KIND)
    monkeypatch.syspath_prepend(tmp_path)
    yield "documented"
    sys.modules.pop("documented", None)


def test_an_engine_of_ones_own(module):
    judge = Judge(path="somewhere").model_copy(update={"engine": f"{module}:ECHO"})
    request = GenerationRequest((Image.new("RGB", (2, 2)),), "hello")
    assert [generation.text for generation in generator(judge).generate([request], max_tokens=8)] == ["hello"]


def test_a_kind_of_ones_own(module):
    expert = Expert(name="x", path="anywhere")
    kind = EXPERT_KINDS[f"{module}:SHORTEST"]
    assert kind.load(expert)([("turn", ["one", "three"])]) == [[-3.0, -5.0]]
    assert kind.fingerprint(expert) == "shortest 1"


def test_families_are_what_the_document_prints(capsys):
    exec(FAMILY, {})
    said = [line.removeprefix("# ") for line in FAMILY.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.split() == " ".join(said).split()


def test_settings_of_the_document_are_settings():
    settings = yaml.safe_load(SETTINGS)
    assert {Captioner(**settings["captioner"]).engine, Judge(**settings["judge"]).engine} == set(ENGINES)
    assert Judge(**yaml.safe_load(ASKING)["judge"]).asking is not None
    assert [Expert(**expert).kind for expert in yaml.safe_load(EXPERTS)["experts"]] == list(EXPERT_KINDS)


@pytest.mark.parametrize("name", [*ENGINES, *EXPERT_KINDS, *FAMILIES])
def test_every_registered_name_has_its_row_of_a_table(name):
    assert re.search(rf"^\| `{name}` \|", TEXT, flags=re.MULTILINE)
