"""A judge's own wording changes no row: its judgments, reworded, make the targets and pairs of the plain ones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from carevl.models.engines.base import Generation
from carevl.settings.loader import load_settings
from carevl.stages import demonstrate, select
from carevl.stages.sampling import JudgeProcessor, Prompted
from carevl.store.earlier_versions import ItemTable, with_places, with_tasks
from carevl.store.schemas import JUDGMENTS
from carevl.store.table import Table
from tests.helpers.items import NO_LOANS

FINISHED = Path(__file__).parents[1] / "data" / "finished_run"


def _bold(evidence, verdict):
    return f"**Evidence:** {evidence}\n\n**Overall Judgment:** **{verdict}**<|im_end|>"


def _thinking(evidence, verdict):
    thoughts = "Overall Judgment: Answer 2 is better? Or Answer 1?"
    return f"<think>\n{thoughts}\n</think>\n\n{evidence}\n\nFinal verdict: {verdict}"


def _json(evidence, verdict):
    return f"```json\n{json.dumps({'evidence': evidence, 'Overall Judgment': verdict}, ensure_ascii=True)}\n```"


def _no_break_spaces(evidence, verdict):
    spaced = f"Overall Judgment: {verdict}".replace(" ", "\u00a0")
    return f"{evidence}\r\n{spaced}"


def _boxed(evidence, verdict):
    return f"{evidence}\n\n### Final Judgement\n\\boxed{{\\text{{{verdict}}}}}"


WORDINGS = {
    "plain": None,
    "bold": _bold,
    "thinking": _thinking,
    "json": _json,
    "no-break spaces": _no_break_spaces,
    "boxed": _boxed,
}


def _tables(stage, *inside):
    [directory] = (FINISHED / stage).iterdir()
    return Table(directory.joinpath(*inside))


def _read_again(judgments, wording):
    rows = judgments.to_pylist()
    for row in rows:
        evidence, label, verdict = row["text"].rpartition("Overall Judgment: ")
        spoken = wording is not None and label and row["status"] == "ok"
        text = wording(evidence.strip(), verdict) if spoken else row["text"]
        read = Prompted(row["task"], tuple(row["order"])).read(Generation(text, 1, row["status"] == "truncated"))
        facts = {"winner": read.winner, "rating": read.rating, "ranking": read.ranking}
        row |= {"text": text, "evidence": read.evidence, "status": read.status, **facts}
    return pa.Table.from_pylist(rows, JUDGMENTS)


@pytest.mark.parametrize("name", list(WORDINGS))
def test_judgments_in_another_wording_make_the_same_targets_and_pairs(name):
    settings = load_settings(str(FINISHED / "settings.yaml"))
    items, routes = ItemTable(_tables("ingest", "items").directory), _tables("route")
    for make, judgments, made in (
        (demonstrate.make_targets, _tables("demonstrate", "judgments"), _tables("demonstrate", "targets")),
        (select.choose, _tables("sample"), _tables("select")),
    ):
        assert sum(len(made.read(number)) for number in made.parts())
        for number in items.parts():
            again = _read_again(judgments.read(number), WORDINGS[name])
            facts = ("status", "winner", "rating", "ranking", "evidence")
            assert again.select(facts).to_pylist() == judgments.read(number).select(facts).to_pylist()
            rows = make(settings, items.read(number), routes.read(number), again)
            assert rows.to_pylist() == with_tasks(with_places(made.read(number))).to_pylist()


def test_an_answer_to_the_bare_question_is_what_follows_the_thinking():
    answer = Prompted("answer", ()).read(Generation("<think>Two? Three?</think>\n\nThree.", 9, False))
    assert (answer.status, answer.evidence) == ("ok", "Three.")


@pytest.mark.vllm
@pytest.mark.parametrize("wording", ["BOLD", "THINKING", "JSON"])
def test_a_base_judge_of_another_wording_makes_the_targets_of_the_plain_one(wording):
    settings = load_settings(str(FINISHED / "settings.yaml"))
    items, routes = ItemTable(_tables("ingest", "items").directory).read(0), _tables("route").read(0)
    high = set(routes.filter(pc.equal(routes["route"].cast(pa.string()), "high"))["item_id"].to_pylist()[:8])
    few = items.filter(pc.is_in(items["item_id"], pa.array(sorted(high))))
    tables = {**NO_LOANS, "items": few, "routes": routes, "images": _tables("ingest", "images").read(0)}
    made = []
    for engine in ("transformers", f"tests.helpers.wordings:{wording}"):
        judge = settings.judge.model_copy(update={"engine": engine})
        processor = JudgeProcessor(judge, demonstrate.sampling_spec(settings))
        processor.setup()
        judgments = processor.process(processor.preprocess(tables))
        made.append(demonstrate.make_targets(settings, few, routes, judgments).to_pylist())
    plain, reworded = made
    assert len(plain) > 2
    assert reworded == plain
