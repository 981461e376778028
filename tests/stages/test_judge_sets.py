"""Judgments from elsewhere become rows of phase 1, each with its images in place; unusable ones are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carevl.data.drawn import DataRoot
from carevl.data.images import ImageLimits
from carevl.settings.data import JudgeSet
from carevl.settings.loader import load_settings
from carevl.stages import judge_sets, sft
from carevl.store.run import Run, RunError
from carevl.store.table import Table
from tests.helpers.mixed_sources import write_sources

CRITIC = {
    "id": "1",
    "source": "sft",
    "image": "pictures/0.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhich response is better?\nResponse 1: A.\nResponse 2: B."},
        {"from": "gpt", "value": "The first: it is right."},
    ],
}
TALK = {
    "images": ["pictures/0.png", "pictures/1.png"],
    "messages": [
        {"role": "user", "content": "Look at <image>."},
        {"role": "assistant", "content": "I do."},
        {"role": "user", "content": "Is <image> like it? Rate the answer: Yes."},
        {"role": "assistant", "content": "<think>Hm.</think> Rating: 2"},
    ],
}


def _write(directory: Path, rows: list[Any]) -> tuple[list[JudgeSet], DataRoot]:
    write_sources(directory, 2)
    file = directory / "critic.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = load_settings("mini", [f"data.judge_sets=[{{path: {file}, name: critic}}]"])
    return settings.data.judge_sets, DataRoot.of(settings, Run(directory / "run"))


def test_conversations_become_rows_to_train_on(tmp_path: Path) -> None:
    sets, root = _write(tmp_path, [CRITIC, TALK, {"messages": TALK["messages"][1:2]}])
    table, log = Table(tmp_path / "rows"), list[str]()
    assert judge_sets.write_judge_sets(sets, root, table, 7, ImageLimits(), 0.5, log.append) == [7]
    one, two = table.read(7).to_pylist()
    pictures = [(tmp_path / f"pictures/{n}.png").read_bytes() for n in (0, 1)]
    assert (one["images"], one["places"], one["turns"]) == (pictures[:1], [0], [])
    assert one["prompt"].startswith("Which response is better?\n")
    assert one["target"] == "The first: it is right."
    assert (two["images"], two["places"], two["prompt"]) == (pictures, [3], "Is  like it? Rate the answer: Yes.")
    assert [turn["places"] for turn in two["turns"]] == [[8], []]
    assert two["target"] == "<think>Hm.</think> Rating: 2"
    assert log[0].startswith("2 judgments of data.judge_sets are learned")
    assert "critic: critic.jsonl#2: the first turn" in log[0] or "critic.jsonl#2" in log[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": CRITIC["conversations"][:1]}, "should end with a turn of the assistant"),
        (CRITIC | {"image": "absent.png"}, "no such file"),
        (CRITIC | {"conversations": "text"}, "should be a list, found text"),
        ({**TALK, "images": ["pictures/0.png"]}, "2 <image> tags, and the row has 1 image"),
        ("no row", "critic.jsonl#1"),
    ],
)
def test_rows_that_cannot_be_used_are_named_and_too_many_end_the_run(tmp_path: Path, row: Any, said: str) -> None:
    sets, root = _write(tmp_path, [CRITIC, row])
    with pytest.raises(RunError, match=r"1 of 2 rows of data.judge_sets cannot be used") as error:
        judge_sets.write_judge_sets(sets, root, Table(tmp_path / "rows"), 0, ImageLimits(), 0.1, print)
    assert said in str(error.value)


def test_a_set_is_in_the_fingerprint_of_phase_1_and_none_is_not(tmp_path: Path) -> None:
    sets, root = _write(tmp_path, [CRITIC])
    with_set = root.settings
    without = load_settings("mini")
    facts = [sft.fingerprint_inputs(settings, root, "sft") for settings in (with_set, without)]
    assert facts[0] == facts[1] | judge_sets.facts(sets, root)
    [file] = facts[0]["judge_sets"]
    assert file.endswith("critic.jsonl")
