"""What a judge sees when no response leads it on, experts that read it, and the labels that this makes trusted."""

from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from carevl.errors import SettingsError
from carevl.models.judge_spec import asking_of
from carevl.settings.loader import load_settings
from carevl.settings.models import Expert
from carevl.stages import route, route_low, score, score_testimony, testify
from carevl.stages.sampling import Prompted
from carevl.stages.score_testimony import EVIDENCE, ScoreTestimonyProcessor, evidence_of
from carevl.store.schemas import CAPTIONS, ITEMS, JUDGMENTS, ROUTES, SCORES
from carevl.store.table import Table
from tests.helpers.items import NO_LOANS, about

TESTIMONY = ["select.testimony_weight=1", "labels={router: 0.5, low_router: 0.5, choice: 0}"]
SETTINGS = load_settings("mini", TESTIMONY)
LOW = [{"first": 0, "second": 1, "route": "low"}]


def item(name, **more):
    return {"item_id": name, **about(f"image-{name}"), "question": "How many?", "responses": ["Two.", "Three."], **more}


def said(name, *texts, status="ok"):
    row = {"item_id": name, "task": "testimony", "order": [], "status": status}
    return [{**row, "sample": n, "text": text, "evidence": text} for n, text in enumerate(texts)]


def test_an_item_testifies_once_where_a_pair_of_it_is_low():
    ask = testify.testimony_spec(SETTINGS).prompts
    plain = {**item("a"), "gold": None}
    assert [(prompted.task, prompted.order) for prompted in ask(plain, LOW)] == [("testimony", ())]
    assert ask(plain, [{**LOW[0], "route": "high"}]) == []
    assert ask({**plain, "images": []}, LOW) == []  # of text alone there is nothing to see
    labelled = [bool(ask({**item(str(n)), "gold": [1.0, 0.0]}, LOW)) for n in range(200)]
    assert 60 < sum(labelled) < 140  # of labelled images those that the first router does not look at


def test_testimony_is_asked_for_in_the_words_of_the_settings_behind_the_images():
    asking = asking_of(SETTINGS.judge)
    words = load_settings("mini", [*TESTIMONY, "testify.prompt='Look. {question} Say what you see.'"]).testify.prompt
    asked = {"question": "Is  left of ?", "turns": []}
    for places, expected in (((0, 0), (0, 0)), ((3, 11), (9, 17))):
        [turn] = Prompted("testimony", (), words).write({**asked, "places": list(places)}, asking)
        assert (turn.text, turn.places) == ("Look. Is  left of ? Say what you see.", expected)
    with pytest.raises(SettingsError, match=r"testify.prompt has to hold \{question\} once"):
        load_settings("mini", ["testify.prompt=What is there?"])


class Reader:
    """Scores a response by its length, and keeps what it was asked."""

    asked: ClassVar[list[tuple[Any, str]]] = []

    def score(self, conversations: Any) -> list[float]:
        Reader.asked += conversations
        return [float(len(response)) for _, response in conversations]


def test_experts_read_caption_and_testimony_a_view_each_and_rate_evidence(monkeypatch):
    monkeypatch.setattr(Reader, "asked", [])
    own = Expert(
        name="own",
        kind="python",
        path=f"{__name__}:Reader",
        template="[{caption}] {question}",
        observer="Seen: {testimony}",
    )
    texts = [
        *said("a", "Two cats.", "", "I'm sorry, I cannot help with that.", "How many?", "Two cats."),
        *said("b", "Three do", status="truncated"),
        *said("c", "Four."),
    ]
    judged = {"item_id": "a", "task": "pairwise", "status": "ok"}
    evidence = [{**judged, "order": [n % 2, 1 - n % 2], "evidence": text} for n, text in enumerate(["z", "y", "z", ""])]
    captions = [{"image_id": "image-a", "view": "default", "text": "A lawn."}]
    tables = {
        **NO_LOANS,
        "items": pa.Table.from_pylist([item(name) for name in "abcd"], ITEMS),
        "captions": pa.Table.from_pylist(captions, CAPTIONS),
        "testimony": pa.Table.from_pylist(texts, JUDGMENTS),
        "judgments": pa.Table.from_pylist(evidence, JUDGMENTS),
    }
    rows = ScoreTestimonyProcessor(own).load().process(tables).to_pylist()
    assert [(row["item_id"], row["view"], row["scores"]) for row in rows] == [
        ("a", "testimony 0", [4.0, 6.0]),
        ("a", "testimony 4", [4.0, 6.0]),
        ("a", EVIDENCE, [1.0, 1.0]),
        ("c", "testimony 0", [4.0, 6.0]),
    ]
    assert evidence_of(tables["judgments"]) == {"a": ["y", "z"]}
    turns = {asked for asked, _ in Reader.asked}
    assert turns == {"[A lawn.\nSeen: Two cats.] How many?", "Seen: Four.\nHow many?"}  # c has no caption


def test_an_expert_that_reads_testimony_alone_may_read_it_without_the_caption():
    expert = {"name": "own", "path": "x", "template": "Seen: {testimony}. Asked: {question}"}
    alone = Expert(**expert, reads="testimony")
    assert alone.write("A lawn.", "What?", "Two") == "Seen: Two. Asked: What?"
    assert alone.write(None, "What?", "Two") == "Seen: Two. Asked: What?"
    assert alone.write(None, "What?") == "What?"
    with pytest.raises(ValidationError, match="there for experts with reads: testimony alone"):
        Expert(**expert)


def test_experts_are_asked_what_they_read():
    settings = load_settings("mini", [*TESTIMONY, "experts.0.reads=captions", "experts.1.reads=testimony"])
    assert score.STAGE.tables(settings) == ["score/llama", "score/mistral"]
    assert score_testimony.STAGE.tables(settings) == ["score_testimony/qwen2", "score_testimony/mistral"]
    assert [need.stage for need in score.STAGE.reservations(settings)] == score.STAGE.tables(settings)
    again = score_testimony.STAGE.reservations(settings)
    assert [need.stage for need in again] == score_testimony.STAGE.tables(settings)
    assert {name for name in route.STAGE.inputs(settings, "route") if "/" in name} == {"score/llama", "score/mistral"}
    for reads, message in (("testimony", "none reads captions"), ("captions", "no expert reads testimony")):
        with pytest.raises(SettingsError, match=message):
            load_settings("mini", [*TESTIMONY, *(f"experts.{n}.reads={reads}" for n in range(3))])


KINDS = ("Where is it?", "How many are there?")


@pytest.fixture
def low(tmp_path):
    """Items of two kinds of question, labelled or not, all low but some, and two experts that have read testimony.

    They know which response is better, but about places they are wrong in every item, and sure of it.
    """
    rng = np.random.default_rng(3)
    items, routes = Table(tmp_path / "items"), Table(tmp_path / "routes")
    scores = [Table(tmp_path / name) for name in ("first", "second")]
    for part in range(3):
        rows = [
            item(f"{part}-{n:03d}", question=KINDS[n % 2], gold=[1.0, 0.0] if n % 3 == 0 else None) for n in range(240)
        ]
        items.write(part, pa.Table.from_pylist(rows, ITEMS))
        routed = [
            {**LOW[0], "item_id": row["item_id"], "route": "high" if n % 10 == 9 else "low", "reason": "undecided"}
            for n, row in enumerate(rows)
        ]
        routes.write(part, pa.Table.from_pylist(routed, ROUTES))
        for table in scores:
            of_expert = [
                {
                    "item_id": row["item_id"],
                    "expert": table.directory.name,
                    "view": view,
                    "scores": [(1 if n % 2 else -1) * 4 + rng.normal(), 0.0] if view != EVIDENCE else [0.0, 1.0, 2.0],
                }
                for n, row in enumerate(rows)
                if n % 7 != 6
                for view in ("testimony 0", "testimony 1", EVIDENCE)
            ]
            table.write(part, pa.Table.from_pylist(of_expert, SCORES))
    return items, routes, scores


def _routed(low, *overrides):
    items, routes, scores = low
    settings = load_settings("mini", [*TESTIMONY, "low_router.threshold=0.6", "testify.samples=2", *overrides])
    experts = [settings.experts[0].model_copy(update={"name": name}) for name in ("first", "second")]
    settings = settings.model_copy(update={"experts": experts})
    tables = route_low.LowTables(settings, items, routes, scores)
    assert score_testimony.testimony_views(settings) == ["testimony 0", "testimony 1"]
    for read in tables.parts():
        asked = [read.questions[item] for item in read.pairs.item]
        names = read.pairs.item_id.take(pa.array(read.pairs.item)).to_pylist()
        assert len(read.questions) == len(set(names)) < 240
        assert asked == [KINDS[int(name.partition("-")[2]) % 2] for name in names]
    fitted = route_low.fit(settings, tables)
    filled = [each for each in tables.parts() if len(each.pairs)]
    batches = [fitted.route(each, unlabelled=settings.low_router.without_labels) for each in filled]
    return fitted, pa.Table.from_batches(batches).to_pylist()


def _counts(rows, items):
    kind = {row["item_id"]: row["question"] for row in items.read().to_pylist()}
    return Counter((kind[row["item_id"]], row["route"], row["reason"]) for row in rows)


def test_a_kind_of_question_that_the_judge_sees_wrongly_every_time_is_not_trusted(low):
    fitted, rows = _routed(low, "low_router.calibration=spread")
    verdicts = {name: group.verdict for name, group in fitted.groups.items()}
    assert verdicts == {"where is": "group_below", "how many": "holds"}
    counts = _counts(rows, low[0])
    assert {key[1:] for key in counts if key[0] == KINDS[0]} == {("low", "group_below"), ("low", "no_testimony")}
    assert counts[KINDS[1], "high", "above_threshold"] > 200
    low_ids = {row["item_id"] for row in low[1].read().to_pylist() if row["route"] == "low"}
    routed = {row["item_id"] for row in rows}
    assert routed < low_ids  # labelled images that serve the first router are not looked at
    unlabelled = {row["item_id"] for row in low[0].read().to_pylist() if row["gold"] is None}
    assert low_ids & unlabelled <= routed


def test_groups_by_source_or_none_are_coarser(low):
    for by in ("source", "none"):
        fitted, rows = _routed(low, "low_router.calibration=spread", f"low_router.group_by={by}")
        assert [group.verdict for group in fitted.groups.values()] == ["group_below"]
        assert {row["route"] for row in rows} == {"low"}


def test_few_labels_of_a_group_leave_it_low(low):
    _, rows = _routed(low, "low_router.calibration=spread", "low_router.group_labels=500")
    assert {row["reason"] for row in rows} == {"few_labels", "no_testimony"}


def test_without_labels_nothing_is_trusted_unless_asked_for(low):
    items, routes, scores = low
    for number in items.parts():
        rows = [row | {"gold": None} for row in items.read(number).to_pylist()]
        items.write(number, pa.Table.from_pylist(rows, ITEMS))
    _, rows = _routed((items, routes, scores))
    assert {row["reason"] for row in rows} == {"no_labels", "no_testimony"}
    _, rows = _routed((items, routes, scores), "low_router.without_labels=true")
    assert {row["route"] for row in rows if row["reason"] != "no_testimony"} == {"high"}


def test_parts_without_low_pairs_or_testimony_are_routed_too(low):
    items, routes, scores = low
    rows = [row | {"route": "high"} for row in routes.read(2).to_pylist()]
    routes.write(2, pa.Table.from_pylist(rows, ROUTES))
    _, rows = _routed(low, "low_router.calibration=spread")
    assert {row["item_id"][0] for row in rows} == {"0", "1"}
    for table in scores:
        for number in range(3):
            table.write(number, pa.Table.from_pylist([], SCORES))
    tables = route_low.LowTables(SETTINGS, items, routes, scores)
    silent = route_low.fit(SETTINGS, tables)
    routed = silent.route(tables.read(0), unlabelled=False)
    assert set(routed["reason"].to_pylist()) == {"no_testimony"}
    for number in range(2):
        rows = [row | {"route": "dropped"} for row in routes.read(number).to_pylist()]
        routes.write(number, pa.Table.from_pylist(rows, ROUTES))
    assert route_low.fit(SETTINGS, tables) is None


def test_phase_2_on_testimony_is_off_without_labels_unless_asked_for(tmp_path):
    weight = "select.testimony_weight=1"
    plain = ["data.sources=[{path: pairs.jsonl}]", weight]
    assert not load_settings("mini", plain).has_phase2
    assert load_settings("mini", [*plain, "low_router.without_labels=true"]).testifies
    assert load_settings("mini", ["data.sources=[{path: pairs.jsonl}]"]).has_phase2
    with pytest.raises(SettingsError, match=r"needs labelled images that the first router has not seen"):
        load_settings("mini", [weight])
