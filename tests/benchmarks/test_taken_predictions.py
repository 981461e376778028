"""Which predictions of earlier tables a part takes over, and that only the rest is asked."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from carevl.benchmarks.predictions import record, to_table
from carevl.benchmarks.question_tables import to_images, to_questions, with_ids
from carevl.benchmarks.questions import judge_question
from carevl.benchmarks.rows import Image
from carevl.benchmarks.run import AnswerProcessor, EvalSet
from carevl.cluster.earlier_rows import KNOWN, EarlierTable, Part
from carevl.cluster.jobs import PoolJob, check_keys
from carevl.judging.verdicts import Verdict
from carevl.settings.models import Judge
from carevl.store.schemas import row_error
from carevl.store.table import Table
from tests.helpers.families import draw_picture

JUDGE = Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=4)


def _image(n, name=None):
    file = io.BytesIO()
    draw_picture(n).save(file, "PNG")
    return Image(name or f"{n}.png", data=file.getvalue())


@pytest.fixture
def rows(pair):
    """Three rows, of which the first two show one image."""
    return [pair(key, images=(_image(n),)) for key, n in (("a", 0), ("b", 0), ("c", 1))]


def _block(rows, protocols=("official_scorer", "strict")):
    [block] = EvalSet("pairwise", rows, protocols).blocks(0, 256)
    return with_ids(block, to_images(block), "pairwise")


def _job(tmp_path, block, *earlier):
    sources = {"questions": Table(tmp_path / "questions"), "images": Table(tmp_path / "images")}
    sources["questions"].write(0, to_questions(block))
    sources["images"].write(0, to_images(block))
    return PoolJob(
        "evaluate/j",
        AnswerProcessor(JUDGE, "j", {"pairwise": "pairwise"}, seed=0),
        sources,
        Table(tmp_path / "new"),
        JUDGE.pool,
        "key",
        ("benchmark", "protocol", "order", "sample"),
        request=("question_id",),
        earlier=earlier,
    )


def _earlier(tmp_path, predictions, drop=(), part=0):
    table = Table(tmp_path / "earlier")
    table.write(part, to_table(predictions).drop_columns(list(drop)))
    return EarlierTable(table, {}, same_parts=False)


def _answers(block, text="written before"):
    return [record(question, "j", text, Verdict("ok", "", winner=0)) for question in block]


def _left(part):
    known = {row["question_id"] for row in part.left[KNOWN].to_pylist()} if KNOWN in part.left else set()
    return {row["key"] for row in part.left["questions"].to_pylist() if row["question_id"] not in known}


def test_one_more_row_costs_its_questions(rows, tmp_path):
    block = _block(rows)
    part = Part.read(_job(tmp_path, block, _earlier(tmp_path, _answers(_block(rows[:-1])), part=7)), 0)
    assert part.rows_taken == 8
    assert _left(part) == {"c"}
    assert part.left["questions"].num_rows == 4


def test_another_protocol_costs_its_questions_and_rows_keep_their_order(rows, tmp_path):
    block = _block(rows)
    job = _job(tmp_path, block, _earlier(tmp_path, _answers(_block(rows, ["strict"]))))
    part = Part.read(job, 0)
    assert part.rows_taken == 6
    made = to_table(_answers([question for question in block if question.protocol == "official_scorer"], "new"))
    whole = part.in_order(job, part.taken, made)
    assert whole["question_id"].to_pylist() == [question.question_id for question in block]
    assert {(row["protocol"], row["text"]) for row in whole.to_pylist()} == {
        ("strict", "written before"),
        ("official_scorer", "new"),
    }
    check_keys(job, {"questions": to_questions(block)}, whole)


def test_what_failed_and_what_shows_another_image_is_asked_again(rows, tmp_path):
    first, *others = _answers(_block(rows))
    failed = replace(first, error=row_error("evaluate", "not answered", "it broke"))
    job = _job(tmp_path, _block([*rows[:2], replace(rows[2], images=(_image(2, "1.png"),))]))
    part = Part.read(replace(job, earlier=(_earlier(tmp_path, [failed, *others]),)), 0)
    assert part.rows_taken == 12 - 1 - 4
    assert _left(part) == {"a", "c"}


def test_nothing_is_taken_of_a_version_that_kept_no_ids(rows, tmp_path):
    block = _block(rows)
    part = Part.read(_job(tmp_path, block, _earlier(tmp_path, _answers(block), ["question_id"])), 0)
    assert part.taken is None
    unknown = [replace(answer, question_id=None) for answer in _answers(block)]
    assert Part.read(_job(tmp_path, block, _earlier(tmp_path, unknown)), 0).taken is None


def test_the_judge_is_asked_what_is_left_and_answers_as_if_all_were(rows, tmp_path):
    block = _block(rows)
    job = _job(tmp_path, block)
    processor = job.processor.load()
    whole = processor.process(Part.read(job, 0).left)
    some = [n for n, question in enumerate(block) if question.key == "a" or question.order == (0, 1)]
    earlier = Table(tmp_path / "earlier")
    earlier.write(0, whole.take(some))
    job = replace(job, earlier=(EarlierTable(earlier, {}),))
    part = Part.read(job, 0)
    made = processor.process(processor.preprocess(part.left))
    assert part.rows_taken == len(some)
    assert made.num_rows == len(block) - len(some)
    assert part.in_order(job, part.taken, made).drop_columns("probability").equals(whole.drop_columns("probability"))


def test_an_id_tells_whatever_the_judge_is_shown(pair):
    row = pair("a", images=(_image(0), _image(1)))

    def identify(row=row, protocol="strict", order=(0, 1), suite="pairwise", **changes):
        block = [replace(judge_question("pairwise", row, protocol, order), **changes)]
        return with_ids(block, to_images(block), suite)[0].question_id

    same = identify()
    assert identify(replace(row, images=(_image(0, "renamed.png"), _image(1)), gold=(0.0, 1.0))) == same
    others = [
        identify(replace(row, images=row.images[::-1])),
        identify(replace(row, images=(_image(0), _image(2, "1.png")))),
        identify(replace(row, images=row.images[:1])),
        identify(replace(row, key="b")),
        identify(protocol="official_scorer"),
        identify(order=(1, 0)),
        identify(sample=1),
        identify(prompt="Which?"),
        identify(places=(0, 1)),
        identify(wording="[[{verdict}]]"),
        identify(responses=("one", "two")),
        identify(response="one"),
        identify(suite="mine:Pairwise"),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_questions_about_a_row_stand_together(rows):
    block = _block(rows)
    assert [question.key for question in block] == [key for key in "abc" for _ in range(4)]
