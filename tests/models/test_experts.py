"""Experts of every kind behind one call, and what becomes of their failures in the stage's table."""

from __future__ import annotations

import math
import sys

import pyarrow as pa
import pytest
from pydantic import ValidationError

from carevl.data.drawn import DataRoot
from carevl.errors import UserError
from carevl.models.experts import EXPERT_KINDS
from carevl.models.row_errors import Failure
from carevl.settings.loader import load_settings
from carevl.settings.models import Endpoint, Expert
from carevl.stages import score
from carevl.store.schemas import CAPTIONS, ITEMS
from tests.helpers.items import NO_LOANS, about

SOURCE = """
class Length:
    def score(self, conversations):
        for turn, response in conversations:
            if response == "crash":
                raise RuntimeError("the lexicon is broken")
        results = [float("nan") if response == "nothing" else float(len(response)) for _, response in conversations]
        return results[:-1] if any(response == "lost" for _, response in conversations) else results

class Silent:
    pass
"""


def load(expert):
    return EXPERT_KINDS[expert.kind].load(expert)


def fingerprint(expert):
    return EXPERT_KINDS[expert.kind].fingerprint(expert)


@pytest.fixture
def expert(tmp_path, monkeypatch):
    (tmp_path / "lengthy_expert.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield Expert(name="length", kind="python", path="lengthy_expert:Length")
    sys.modules.pop("lengthy_expert", None)


def test_a_python_class_scores(expert):
    assert load(expert)([("q", ["one", "three"]), ("q", ["to"])]) == [[3.0, 5.0], [2.0]]


def test_a_row_that_breaks_an_expert_fails_alone(expert):
    results = load(expert)([("q", ["one", "three"]), ("q", ["crash", "two"]), ("q", ["lost"]), ("q", ["four"])])
    assert results[0] == [3.0, 5.0]
    assert results[1] == Failure("engine", "RuntimeError: the lexicon is broken")
    assert results[2] == Failure("engine", "ValueError: the expert gave 0 scores for 1 conversations")
    assert results[3] == [4.0]


def test_over_long_rows_of_a_reward_model_fail_alone():
    expert = Expert(name="llama", path="miniworld:expert-llama", engine="transformers", max_model_len=60)
    short, long, other = load(expert)([("how many?", ["two", "three"]), ("why? " * 60, ["a", "b"]), ("how?", ["so"])])
    assert long.kind == "too long"
    assert [len(short), len(other)] == [2, 1]


@pytest.mark.parametrize(
    "path", ["no_such_module:Length", "lengthy_expert", "lengthy_expert:Nobody", "lengthy_expert:Silent"]
)
def test_a_path_that_names_no_expert_is_refused(expert, path):
    with pytest.raises(UserError, match=f"expert {path}: "):
        load(expert.model_copy(update={"path": path}))


def test_an_endpoint_needs_its_settings_and_nobody_else_has_them():
    with pytest.raises(ValidationError, match="belong together"):
        Expert(name="x", kind="endpoint", path="judge-1")
    with pytest.raises(ValidationError, match="belong together"):
        Expert(name="x", path="judge-1", endpoint=Endpoint(url="http://127.0.0.1/v1"))


def test_what_an_expert_computes_has_a_fingerprint(expert, tmp_path):
    before = fingerprint(expert)
    (tmp_path / "lengthy_expert.py").write_text(SOURCE.replace("float(len(response))", "-float(len(response))"))
    assert fingerprint(expert) != before
    served = Expert(name="x", kind="endpoint", path="judge-1", endpoint=Endpoint(url="http://127.0.0.1/v1"))
    assert fingerprint(served) == "http://127.0.0.1/v1 judge-1"
    settings = load_settings("mini").model_copy(update={"experts": [served]})
    assert "retries" not in str(score.fingerprint_inputs(settings, DataRoot(settings, tmp_path, tmp_path), "score/x"))


def test_every_item_has_its_row_whatever_the_expert_does(expert):
    responses = [["a", "bb"], ["crash", "bb"], ["nothing", "bb"], ["lost", "bb"], ["ccc", "d"]]
    items = [{"item_id": str(i), **about("x"), "question": "q", "responses": r} for i, r in enumerate(responses)]
    captions = [{"image_id": "x", "view": "default", "text": "said", "captioner": "c", "tokens": 1}]
    tables = {
        **NO_LOANS,
        "items": pa.Table.from_pylist(items, ITEMS),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
    }
    rows = score.ScoreProcessor(expert).load().process(tables).to_pylist()
    assert [(row["item_id"], row["view"]) for row in rows] == [
        (str(i), v) for i in range(5) for v in ("default", "none")
    ]
    assert [row["error"] and row["error"]["kind"] for row in rows[::2]] == [
        None,
        "engine",
        "not a number",
        "engine",
        None,
    ]
    assert rows[0]["scores"] == rows[1]["scores"] == [1.0, 2.0]
    assert all(math.isfinite(value) for row in rows for value in row["scores"] or ())
    assert "length: RuntimeError: the lexicon is broken" in rows[2]["error"]["message"]


OWN_KIND = """
from carevl.models.experts.base import ExpertKind, score_by_row

class Longest:
    def score(self, conversations):
        return [float(len(response)) for _, response in conversations]

class LongestKind(ExpertKind):
    name = "longest"
    def load(self, expert):
        return score_by_row(Longest())
    def fingerprint(self, expert):
        return "longest 1"

LONGEST = LongestKind()
"""


def test_a_kind_of_the_users_own_scores_a_part(expert, tmp_path):
    (tmp_path / "longest_kind.py").write_text(OWN_KIND)
    own = expert.model_copy(update={"kind": "longest_kind:LONGEST"})
    items = [{"item_id": "1", **about("x"), "question": "q", "responses": ["a", "bb"]}]
    captions = [{"image_id": "x", "view": "default", "text": "said", "captioner": "c", "tokens": 1}]
    tables = {
        **NO_LOANS,
        "items": pa.Table.from_pylist(items, ITEMS),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
    }
    processor = score.ScoreProcessor(own).load()
    rows = processor.process({**tables, **processor.preprocess(tables)}).to_pylist()
    assert [row["scores"] for row in rows] == [[1.0, 2.0], [1.0, 2.0]]
    assert fingerprint(own) == "longest 1"
    sys.modules.pop("longest_kind", None)


def test_a_name_that_is_no_kind_is_refused():
    with pytest.raises(UserError, match="there is no expert kind 'reward-model'; did you mean reward_model"):
        EXPERT_KINDS["reward-model"]


def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(expert):
    for kind, settings in {
        "reward_model": Expert(name="x", path="no/such-model"),
        "python": expert,
        "endpoint": Expert(name="x", kind="endpoint", path="m", endpoint=Endpoint(url="http://judges.example/v1")),
    }.items():
        EXPERT_KINDS[kind].check(settings)
    for kind, update, message in [
        ("python", {"path": "lengthy_expert:Nobody"}, "has no class Nobody with a method score"),
        ("python", {"endpoint": Endpoint(url="http://127.0.0.1/v1")}, "settings under endpoint, but its kind is"),
        ("endpoint", {}, "kind endpoint needs settings under endpoint"),
        ("endpoint", {"endpoint": Endpoint(url="http://judges.example/v1", api_key_env="K")}, "is not encrypted"),
    ]:
        with pytest.raises(UserError, match=message):
            EXPERT_KINDS[kind].check(expert.model_copy(update=update))
