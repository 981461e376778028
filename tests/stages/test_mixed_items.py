"""Items about one image, several and none, with turns: what tables hold of them, and what models are shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from PIL import Image

from carevl.audit.items import ItemFacts
from carevl.judging.turns import Turn, turns_of
from carevl.models.engines.base import Generation
from carevl.models.experts.inputs import ExpertInput, fill_captions
from carevl.models.judge_spec import asking_of
from carevl.settings.data import Source
from carevl.settings.loader import load_settings
from carevl.settings.models import Expert
from carevl.stages import caption, route, sample, sampling, score, train_rows
from carevl.stages.ingest import run_ingest
from carevl.store.ingested import Ingested, borrowed_captions
from carevl.store.run import Run, RunError
from carevl.store.schemas import CAPTIONS, SCORES, TARGETS
from carevl.store.table import Table
from tests.helpers.mixed_sources import N, write_sources

SETTINGS = load_settings("mini")
EXPERT = Expert(name="reader", path="org/expert", template="Image: {caption}\n{question}")


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    directory = tmp_path_factory.mktemp("mixed")
    sources = [Source(path=str(file), name=name) for name, file in write_sources(directory).items()]
    data = SETTINGS.data.model_copy(update={"sources": sources, "parts": 3})
    settings = SETTINGS.model_copy(update={"data": data, "benchmarks": []})
    counts = run_ingest(settings, Run(directory / "run"), directory / "ingest", lambda *_: None)
    assert (counts["rows_in"], counts["rows_out"], counts["errors"], counts["text_only"]) == (3 * N, 3 * N, 0, N)
    assert counts["images"] == N + 1
    return Ingested(directory / "ingest")


def captions_of(ingested: Ingested, directory: Path, broken: str = "") -> Table:
    """A caption of every image, its id; the broken one has none."""
    table = Table(directory)
    for number in ingested.images.parts():
        rows = [
            {"image_id": name, "view": "default", "text": None if name == broken else f"It is {name[:8]}."}
            | {"error": {"stage": "caption", "kind": "empty", "message": "none"} if name == broken else None}
            for name in ingested.images.read(number)["image_id"].to_pylist()
        ]
        table.write(number, pa.Table.from_pylist(rows, CAPTIONS))
    caption.write_borrowed(ingested, table)
    return table


def items_of(ingested: Ingested) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ingested.items.read().to_pylist()
    return rows


def test_every_part_has_the_images_that_its_items_show_and_each_image_one_home(ingested: Ingested) -> None:
    homes = [name for number in ingested.images.parts() for name in _names(ingested.images, number)]
    assert len(homes) == len(set(homes)) == N + 1
    lent = 0
    for number in ingested.items.parts():
        shown = {name for item in ingested.items.read(number).to_pylist() for name in item["images"]}
        own, borrowed = _names(ingested.images, number), _names(ingested.borrowed, number)
        assert set(borrowed) == shown - set(own)
        assert len(borrowed) == len(set(borrowed))
        files = dict(zip(*ingested.read_images(number, ["image_id", "bytes"]).to_pydict().values(), strict=True))
        assert all(files[name] for name in shown)
        lent += len(borrowed)
    assert lent


def _names(table: Table, number: int) -> list[str]:
    names: list[str] = table.read(number)["image_id"].to_pylist()
    return names


def test_items_hold_images_in_place_and_the_turns_before_the_question(ingested: Ingested) -> None:
    by_kind: dict[int, list[dict[str, Any]]] = {}
    for item in items_of(ingested):
        by_kind.setdefault(len(item["images"]), []).append(item)
    assert {kind: len(items) for kind, items in by_kind.items()} == {0: N, 1: N, 2: N}
    assert all((item["places"], item["turns"]) == ([0], []) for item in by_kind[1])
    assert all((item["places"], item["turns"]) == ([], []) for item in by_kind[0])
    for item in by_kind[2]:
        first, reply, question = turns_of(item)
        assert (first, reply) == (Turn("user", "Do you see ?", (11,)), Turn("assistant", "I do."))
        assert question.text.startswith("And ? Of the second one: ")
        assert question.places == (4,)


def test_experts_read_captions_where_images_stand_and_turns_as_turns() -> None:
    lone = (Turn("user", "How many?", (0,)),)
    assert fill_captions(EXPERT, lone, ["Two cats."]) == "Image: Two cats.\nHow many?"
    assert fill_captions(EXPERT, lone, None) == "How many?"
    both = (Turn("user", "Which is older?", (0, 0)),)
    assert (
        fill_captions(EXPERT, both, ["A cat.", "A dog."]) == "Image: Image 1: A cat.\nImage 2: A dog.\nWhich is older?"
    )
    assert fill_captions(EXPERT, both, None) == "Which is older?"
    placed = (Turn("user", "Is  like ?", (3, 9)),)
    assert fill_captions(EXPERT, placed, ["A cat.", "A dog."]) == "Is [Image 1: A cat.] like [Image 2: A dog.]?"
    assert fill_captions(EXPERT, placed, None) == "Is [Image 1] like [Image 2]?"
    talk = (Turn("user", "What?", (0,)), Turn("assistant", "A cat."), Turn("user", "Sure?"))
    assert fill_captions(EXPERT, talk, ["A cat."]) == (
        Turn("user", "Image: A cat.\nWhat?"),
        Turn("assistant", "A cat."),
        Turn("user", "Sure?"),
    )
    assert fill_captions(EXPERT, (Turn("user", "What is 2 and 2?"),), None) == "What is 2 and 2?"


def test_of_several_captions_the_longest_loses_sentences_first() -> None:
    read = ExpertInput((Turn("user", "?", (0, 0)),), ["a", "b"], ("One. Two.", "Three. Four. Five."))
    shorter = read.shorter()
    assert shorter is not None
    assert shorter.captions == ("One. Two.", "Three. Four.")
    assert shorter.n_characters == 21
    while (less := shorter.shorter()) is not None:
        shorter = less
    assert shorter.captions == ("One.", "Three.")


class Reader:
    """Scores a response by its length, and keeps what it was asked."""

    asked: ClassVar[list[tuple[Any, str]]] = []

    def score(self, conversations: Any) -> list[float]:
        Reader.asked += conversations
        return [float(len(response)) for _, response in conversations]


@pytest.fixture
def scored(ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Scores by (item, view); the caption of one image is missing."""
    monkeypatch.setattr(Reader, "asked", [])
    [broken, *_] = _names(ingested.images, ingested.images.parts()[0])
    captions = captions_of(ingested, tmp_path / "captions", broken)
    own = Expert(name="own", kind="python", path=f"{__name__}:Reader", template="{caption} {question}")
    processor = score.ScoreProcessor(own).load()
    rows = []
    for number in ingested.items.parts():
        tables = {"items": ingested.items.read(number), "captions": captions.read(number)}
        tables["borrowed_captions"] = borrowed_captions(captions).read(number)
        rows += processor.process(tables).to_pylist()
    return broken, {(row["item_id"], row["view"]): row for row in rows}


def test_an_item_is_scored_with_all_its_captions_and_one_of_text_alone_once(scored: Any, ingested: Ingested) -> None:
    broken, rows = scored
    for item in items_of(ingested):
        views = [view for name, view in rows if name == item["item_id"]]
        assert views == (["default", "none"] if item["images"] else ["default"])
        lacks = broken in item["images"]
        error = rows[item["item_id"], "default"]["error"]
        assert (error is not None and error["kind"] == "no caption") == lacks
        assert rows[item["item_id"], views[-1]]["scores"] == [float(len(text)) for text in item["responses"]] or lacks
    said = {asked for asked, _ in Reader.asked}
    several = [item for item in items_of(ingested) if len(item["images"]) == 2 and broken not in item["images"]]
    for item in several:
        first, second = (name[:8] for name in item["images"])
        question = item["question"].removeprefix("And ?")
        assert (
            f"User: Do you see [Image 1: It is {first}.]?\nAssistant: I do.\nUser: And [Image 2: It is {second}.]?"
            + (question)
            in said
        )


class Engine:
    """Keeps what it was asked, and finds the first answer the better one."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def generate(self, requests: Any, **_: Any) -> list[Generation]:
        self.requests += requests
        return [Generation("It is so.\nOverall Judgment: Answer 1 is better.", 9, False) for _ in requests]


def test_a_judge_sees_the_images_in_place(ingested: Ingested, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(sampling, "generator", lambda _: engine)
    processor = sampling.JudgeProcessor(SETTINGS.judge, sample.sampling_spec(SETTINGS)).load()
    for number in ingested.items.parts():
        items = ingested.items.read(number)
        routes = [
            {"item_id": name, "first": 0, "second": 1, "route": "low", "winner": 0, "probability": 0.5}
            for name in items["item_id"].to_pylist()
        ]
        tables = {"items": items, "images": ingested.images.read(number), "borrowed": ingested.borrowed.read(number)}
        tables["routes"] = pa.Table.from_pylist(routes)
        made = processor.process(processor.preprocess(tables))
        assert made["error"].null_count == len(made)
    kinds = {(len(request.images), len(request.earlier)) for request in engine.requests}
    assert kinds == {(0, 0), (1, 0), (2, 0), (2, 2)}  # the bare question has its turns, a judging prompt is one
    for request in engine.requests:
        places = [place for turn in (*request.earlier, request) for place in turn.places]
        assert len(places) == len(request.images)
        assert all(isinstance(image, Image.Image) for image in request.images)
        if len(request.images) == 2 and not request.earlier:
            first, second = request.places
            assert request.prompt[:first].endswith("Do you see ")
            assert request.prompt[first:second] == "?\nAssistant: I do.\nUser: And "


def test_rows_to_train_on_have_all_files_of_their_items(ingested: Ingested, tmp_path: Path) -> None:
    targets, rows = Table(tmp_path / "targets"), Table(tmp_path / "rows")
    for number in ingested.items.parts():
        made = [
            {"item_id": item["item_id"], "task": "pairwise", "order": [0, 1], "text": "x", "evidence": True}
            | sampling.Prompted("pairwise", (0, 1)).columns(item, asking_of(SETTINGS.judge))
            for item in ingested.items.read(number).to_pylist()
        ]
        targets.write(number, pa.Table.from_pylist(made, TARGETS))
    filled = train_rows.write_rows(targets, {"prompt": "prompt", "target": "text"}, ingested, rows)
    assert filled == ingested.items.parts()
    files = {row["image_id"]: row["bytes"] for row in ingested.images.read().to_pylist()}
    of_item = {item["item_id"]: item for item in items_of(ingested)}
    for row in rows.read().to_pylist():
        names = of_item[row["item_id"]]["images"]
        assert row["images"] == [files[name] for name in names]
        assert len(row["places"]) == len(names)


def _routed(ingested: Ingested, directory: Path, share: float, log: list[str]) -> dict[str, tuple[str, str]]:
    table = Table(directory / "scores")
    for number in ingested.items.parts():
        rows = [
            {"item_id": item["item_id"], "expert": expert.name, "view": view, "scores": [3.0, -3.0]}
            for item in ingested.items.read(number).to_pylist()
            for expert in SETTINGS.experts
            for view in ("default", "none")[: 1 + bool(item["images"])]
        ]
        table.write(number, pa.Table.from_pylist(rows, SCORES))
    data = SETTINGS.data.model_copy(update={"text_only_share": share})
    router = SETTINGS.router.model_copy(update={"policy": "mean_margin", "threshold": 0.5, "text_only_limit": 0.1})
    settings = SETTINGS.model_copy(update={"data": data, "router": router})
    target = Table(directory / f"routes-{share}")
    route.run_route(settings, ingested.items, [table], target, log.append)
    return {row["item_id"]: (row["route"], row["reason"]) for row in target.read().to_pylist()}


def test_text_alone_is_no_business_of_the_limit_and_capped(ingested: Ingested, tmp_path: Path) -> None:
    text = {item["item_id"] for item in items_of(ingested) if not item["images"]}
    log: list[str] = []
    routes = _routed(ingested, tmp_path, 0.5, log)
    assert {routes[name][1] for name in text} == {"above_threshold"}  # half as many as the others
    assert {reason for name, (_, reason) in routes.items() if name not in text} == {"text_only"}
    assert not log
    capped = _routed(ingested, tmp_path, 0.1, log)
    dropped = {name for name, (_, reason) in capped.items() if reason == "text_only_share"}
    assert dropped < text
    assert abs(len(text - dropped) - 2 * N / 9) < N / 3
    assert all(capped[name] == ("dropped", "text_only_share") for name in dropped)
    assert {name: row for name, row in capped.items() if name not in dropped} == {
        name: row for name, row in routes.items() if name not in dropped
    }
    assert "as data.text_only_share = 0.1 allows" in log[0]
    assert {reason for _, reason in _routed(ingested, tmp_path, 0.0, log).values()} == {"text_only", "text_only_share"}


def test_an_audit_tells_apart_how_many_images_items_show(ingested: Ingested, tmp_path: Path) -> None:
    _routed(ingested, tmp_path, 1.0, [])
    names = [expert.name for expert in SETTINGS.experts]
    pairs = route.read_fitting(ingested.items, [Table(tmp_path / "scores")], names).pairs
    facts = ItemFacts.read(ingested.items, pairs, {})
    assert Counter(facts.images) == {"none": N, "one": N, "several": N}
    one = pairs.item_id.filter(pa.array([shown == "one" for shown in facts.images]))
    alike = replace(pairs, item_id=one, image_id=one)
    assert set(ItemFacts.read(ingested.items, alike, {}).images) == {""}


def test_nothing_but_text_is_refused_with_the_way_out(ingested: Ingested, tmp_path: Path) -> None:
    only = Ingested(tmp_path / "ingest")
    rows = ingested.items.read()
    only.items.write(0, rows.filter(pa.array([not names for names in rows["images"].to_pylist()])))
    with pytest.raises(RunError, match=r"if a judge of texts is wanted, set it to 1"):
        _routed(only, tmp_path, 0.5, [])
    assert {reason for _, reason in _routed(only, tmp_path, 1.0, []).values()} == {"above_threshold"}
