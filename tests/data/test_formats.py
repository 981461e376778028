"""Each public format with its smallest example, and what is said when none fits."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carevl.data import formats
from carevl.data.formats import FORMATS, coco_captions, llava_instruct
from carevl.data.formats.detection import NoResponsesError, UnknownFormatError, columns_of, detect
from carevl.data.reading import Source, detect_formats, read_source
from carevl.data.rows import ImageNames, RowError, VideoReference
from carevl.errors import SettingsError
from carevl.judging.turns import Turn

IMAGE = "a.png"
OF_RESPONSES = [name for name, known in FORMATS.items() if not known.of_questions]
OF_QUESTIONS = [name for name, known in FORMATS.items() if known.of_questions]
OF_TEXT = ("helpsteer3", "text-pair")
"""Formats whose smallest example is about no image."""
ASKED, GOOD, BAD = "What is it?", "A cat.", "A dog."
RATED = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def ratings(*values: object) -> dict[str, Any]:
    return {name: {"Rating": value, "Rationale": ""} for name, value in zip(RATED, values, strict=True)}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


def part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_every_file_of_the_package_is_a_registered_format() -> None:
    modules = [name for _, name, _ in pkgutil.iter_modules(formats.__path__) if name not in ("base", "detection")]
    members = [importlib.import_module(f"carevl.data.formats.{name}").FORMAT for name in modules]
    assert sorted(FORMATS) == sorted(member.name for member in members)
    assert all(FORMATS[member.name] is member for member in members)


@pytest.mark.parametrize("name", OF_QUESTIONS)
def test_smallest_example_of_questions_is_detected_where_models_answer(name: str) -> None:
    row = FORMATS[name].example
    assert detect(columns_of([row]), questions=True).name == name
    found = FORMATS[name].read(row)
    assert (found.question, found.responses, found.preference) == (ASKED, (), None)
    [image] = found.references
    assert IMAGE in (image.names if isinstance(image, ImageNames) else [image])
    right = {name: value for name, value in found.extra.items() if "id" not in name}
    assert right in ({"answer": GOOD}, {"answers": [GOOD]})
    with pytest.raises(NoResponsesError, match=r"Closest is .*As .* the rows have no responses; .* respond\.models"):
        detect(columns_of([row]))


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_smallest_example_is_detected_and_read(name: str) -> None:
    row = FORMATS[name].example
    assert detect(columns_of([row])).name == name
    assert detect(columns_of([row]), questions=True).name == name
    found = FORMATS[name].read(row)
    assert (found.question, found.references) == (ASKED, () if name in OF_TEXT else (IMAGE,))
    assert found.preference is not None
    by_text = dict(zip(found.responses, found.preference, strict=True))
    assert by_text.keys() == {GOOD, BAD}
    assert by_text[GOOD] > by_text[BAD]


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, known in FORMATS.items() for column in known.example]
)
def test_a_null_or_missing_or_wrong_column_is_a_row_error_or_optional(name: str, column: str) -> None:
    row = FORMATS[name].example
    required = {one for names in FORMATS[name].columns for one in names.split("|")} - {"ds_name"}
    images = {"image", "images", "img_path", "file_name"}
    for broken in (row | {column: None}, {k: v for k, v in row.items() if k != column}, row | {column: 7.5}):
        if column not in required and (name, column) != ("trl", "prompt"):
            if broken.get(column) is None:
                assert FORMATS[name].read(broken).question in (ASKED, coco_captions.DEFAULT_QUESTION)
        elif column in images:
            assert FORMATS[name].read(broken).references in ((None,), (7.5,))
        else:
            with pytest.raises(RowError) as failure:
                FORMATS[name].read(broken)
            assert failure.value.kind in ("format", "question", "responses", "preference")


@pytest.mark.parametrize("rating", ["N/A", "", None, "nan", "inf", float("nan"), True, [5], "５", "1e3"])
def test_ratings_that_are_not_numbers_are_errors(rating: object) -> None:
    row = FORMATS["vlfeedback"].example
    completions = [row["completions"][0], row["completions"][1] | {"annotations": ratings("1", rating, "1")}]
    with pytest.raises(RowError, match=r"completions\[1\].Ethical") as failure:
        FORMATS["vlfeedback"].read(row | {"completions": completions})
    assert failure.value.kind == "preference"


def test_vlfeedback_averages_the_aspects_and_reads_a_struct_of_lists() -> None:
    rated = [
        {"annotations": ratings("5", "5", "4.0"), "model": "m", "response": GOOD},
        {"annotations": ratings("1", "5", "1"), "model": "n", "response": BAD},
    ]
    as_lists = {key: [one[key] for one in rated] for key in ("annotations", "model", "response")}
    for completions in (rated, as_lists):
        found = FORMATS["vlfeedback"].read(FORMATS["vlfeedback"].example | {"completions": completions})
        assert found.preference == pytest.approx((14 / 3, 7 / 3))


def test_vlfeedback_without_annotations_has_no_preference() -> None:
    row = FORMATS["vlfeedback"].example
    unrated = [{"response": GOOD, "annotations": None}, {"response": BAD, "annotations": None}]
    assert FORMATS["vlfeedback"].read(row | {"completions": unrated}).preference is None
    with pytest.raises(RowError, match="annotations"):
        FORMATS["vlfeedback"].read(row | {"completions": [row["completions"][0], unrated[1]]})


@pytest.mark.parametrize("label", [0, 3, 1.5, "A", "-1"])
def test_llava_rlhf_accepts_only_one_or_two(label: object) -> None:
    with pytest.raises(RowError) as failure:
        FORMATS["llava-rlhf"].read(FORMATS["llava-rlhf"].example | {"preference": label})
    assert failure.value.kind == "preference"


def test_llava_rlhf_captions_come_from_their_file(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    captions = tmp_path / "image_to_caption.json"
    captions.write_text(json.dumps({IMAGE: ["A cat on a mat.", "A cat."]}))
    path = write_lines([FORMATS["llava-rlhf"].example, FORMATS["llava-rlhf"].example | {"image": "b.png"}])
    rows = list(read_source(Source("s", str(path.parent), captions=str(captions))))
    assert [row.preference.extra.get("captions") for row in rows if row.preference] == [
        ["A cat on a mat.", "A cat."],
        None,
    ]


VIDEOS: dict[str, dict[str, Any]] = {
    "mm-rlhf": FORMATS["mm-rlhf"].example | {"image": None, "video": "v.mp4"},
    "spa-vl": FORMATS["spa-vl"].example | {"image": None, "video": "v.mp4"},
    "llamafactory-sharegpt": {
        "conversations": [human(f"<video>{ASKED}")],
        "chosen": gpt(GOOD),
        "rejected": gpt(BAD),
        "videos": ["v.mp4"],
    },
    "llamafactory-alpaca": {"instruction": f"<video>{ASKED}", "chosen": GOOD, "rejected": BAD, "videos": ["v.mp4"]},
    "ms-swift": {
        "messages": [user(f"<video>{ASKED}"), assistant(GOOD)],
        "rejected_response": BAD,
        "videos": ["v.mp4"],
    },
    "trl": {
        "prompt": [user([{"type": "video", "video": "v.mp4"}, {"type": "text", "text": ASKED}])],
        "chosen": [assistant(GOOD)],
        "rejected": [assistant(BAD)],
    },
    "items": {"video": "v.mp4", "question": ASKED, "responses": [GOOD, BAD]},
}
"""Layouts with videos: MM-RLHF's card; the `videos` and `<video>` of LLaMA-Factory's data/README.md (Multimodal Video
Dataset) and of ms-swift's Custom-dataset.md; parts of messages as Qwen2-VL has them."""


@pytest.mark.parametrize("name", VIDEOS)
def test_formats_hold_videos(name: str) -> None:
    row = VIDEOS[name]
    assert detect(columns_of([{key: value for key, value in row.items() if value is not None}])).name == name
    found = FORMATS[name].read(row)
    assert (found.question, found.places, found.references) == (ASKED, (0,), (VideoReference("v.mp4"),))


def test_trl_without_prompt_asks_what_stands_before_the_response() -> None:
    chosen = [user([{"type": "image"}, *part(ASKED)]), assistant(GOOD)]
    row = {"images": [IMAGE], "chosen": chosen, "rejected": [chosen[0], assistant(BAD)]}
    assert detect(columns_of([row])).name == "trl"
    found = FORMATS["trl"].read(row)
    assert (found.question, found.responses) == (ASKED, (GOOD, BAD))


def test_ms_swift_reads_rejected_messages() -> None:
    row = FORMATS["ms-swift"].example | {"rejected_response": None, "rejected_messages": [user(ASKED), assistant(BAD)]}
    assert FORMATS["ms-swift"].read(row).responses == (GOOD, BAD)


def test_earlier_turns_are_kept_with_their_images_in_place() -> None:
    talk = [human(f"<image>\n{ASKED}"), gpt("A pet."), human("Which one?")]
    row = FORMATS["llamafactory-sharegpt"].example | {"conversations": talk}
    found = FORMATS["llamafactory-sharegpt"].read(row)
    assert (found.question, found.places) == ("Which one?", ())
    assert found.turns == (Turn("user", ASKED, (0,)), Turn("assistant", "A pet."))


def test_as_many_tags_as_images_or_none() -> None:
    row = FORMATS["llamafactory-sharegpt"].example
    for change in ({"images": [IMAGE, IMAGE]}, {"conversations": [human("<image><image>Which?")]}):
        with pytest.raises(RowError) as failure:
            FORMATS["llamafactory-sharegpt"].read(row | change)
        assert failure.value.kind == "image_places"
    two = {"images": [IMAGE, "b.png"]}
    found = FORMATS["llamafactory-sharegpt"].read(row | two | {"conversations": [human("Is <image> like <image>?")]})
    assert (found.question, found.places, found.references) == ("Is  like ?", (3, 9), (IMAGE, "b.png"))
    found = FORMATS["llamafactory-sharegpt"].read(row | two | {"conversations": [human(ASKED)]})
    assert (found.question, found.places) == (ASKED, (0, 0))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"responses": [GOOD]}, "responses"),
        ({"responses": [GOOD, GOOD, GOOD]}, "responses"),
        ({"responses": [GOOD, None]}, "format"),
        ({"responses": None}, "format"),
        ({"question": None}, "question"),
        ({"question": " \n"}, "question"),
        ({"source_preference": [1]}, "preference"),
        ({"source_preference": ["good", "bad"]}, "preference"),
    ],
)
def test_items_that_cannot_be_judged_are_errors(change: dict[str, object], kind: str) -> None:
    with pytest.raises(RowError) as failure:
        FORMATS["items"].read(FORMATS["items"].example | {"source_preference": None} | change)
    assert failure.value.kind == kind


@pytest.mark.parametrize("name", ["items", "vlfeedback"])
def test_a_row_with_an_empty_list_of_responses_is_a_question_where_models_answer(
    name: str, write_lines: Callable[..., Path]
) -> None:
    column = "responses" if name == "items" else "completions"
    good = {name: value for name, value in FORMATS[name].example.items() if name != "source_preference"}
    path = write_lines([good, good | {column: []}])
    full, bare = read_source(Source("s", str(path), respond=True))
    assert full.preference.responses == (GOOD, BAD)
    assert (bare.preference.question, bare.preference.responses, bare.error) == (ASKED, (), None)
    full, bare = read_source(Source("s", str(path)))
    assert (full.error, bare.error.kind) == (None, "responses")
    assert bare.error.message.endswith("name models that write them in respond.models")


def test_one_response_alone_is_an_error_where_models_answer_too(write_lines: Callable[..., Path]) -> None:
    good = FORMATS["items"].example
    path = write_lines([good, good | {"responses": [GOOD], "source_preference": None}])
    _, row = read_source(Source("s", str(path), respond=True))
    assert row.error.message == "only one response; a preference needs two or more"


@pytest.mark.parametrize(
    "columns",
    [
        {"image": "text", "question": "text", "chosen": "number", "rejected": "text"},
        {"image": "text", "question": "text", "chosen": "text"},
        {"image": "text", "question": "text", "responses": "text"},
    ],
)
def test_a_table_of_mistyped_responses_is_not_taken_for_questions(columns: dict[str, str]) -> None:
    with pytest.raises(UnknownFormatError, match=r"Closest is (spa-vl|items), which also needs"):
        detect(columns, questions=True)


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        ({}, {"answer": GOOD}),
        ({"answer": 3}, {"answer": "3"}),
        ({"answer": float("nan")}, {}),
        ({"answer": " "}, {}),
        ({"answer": None, "answers": [GOOD, None, "A pet."]}, {"answers": [GOOD, "A pet."]}),
        ({"answer": [{"answer": GOOD, "answer_id": 1}]}, {"answers": [GOOD]}),
        ({"answer": None, "answers": GOOD, "id": "7"}, {"answer": GOOD, "id": "7"}),
    ],
)
def test_right_answers_are_kept_beside_the_question(change: dict[str, object], extra: dict[str, object]) -> None:
    assert FORMATS["question"].read(FORMATS["question"].example | change).extra == extra


@pytest.mark.parametrize("answer", [True, {"text": GOOD}, [[GOOD]]])
def test_right_answers_of_another_type_are_errors(answer: object) -> None:
    with pytest.raises(RowError, match="should be text or a number, found"):
        FORMATS["question"].read(FORMATS["question"].example | {"answer": answer})


TALK = [human(f"<image>\n{ASKED}"), gpt(GOOD), human("Which one?"), gpt("Tom."), human("And <image>?"), gpt("Tim.")]


def pieces(row: dict[str, Any]) -> list[Any]:
    return [llava_instruct.read(piece) for piece in llava_instruct.divide(row)]


def test_llava_instruct_asks_every_turn_of_the_user_with_what_stands_before() -> None:
    first, second, third = pieces({"id": "7", "images": [IMAGE, "b.png"], "conversations": TALK})
    assert [(one.question, one.extra) for one in (first, second, third)] == [
        (ASKED, {"id": "7", "answer": GOOD}),
        ("Which one?", {"id": "7", "answer": "Tom."}),
        ("And ?", {"id": "7", "answer": "Tim."}),
    ]
    assert [one.references for one in (first, second, third)] == [(IMAGE,), (IMAGE,), (IMAGE, "b.png")]
    assert second.turns == (Turn("user", ASKED, (0,)), Turn("assistant", GOOD))
    assert (len(third.turns), third.places) == (4, (4,))


def test_llava_instruct_without_tags_shows_all_images_first() -> None:
    talk = [human(ASKED), gpt(GOOD), human("Which one?")]
    first, second = pieces({"images": [IMAGE, "b.png"], "conversations": talk})
    assert (first.places, second.turns[0].places) == ((0, 0), (0, 0))
    assert (first.extra, second.extra) == ({"answer": GOOD}, {})
    late = [human("Hello?"), gpt("Hello."), human(f"<image>{ASKED}")]
    before, after = pieces({"image": IMAGE, "conversations": late})
    assert (before.references, after.references) == ((), (IMAGE,))


def test_a_divided_row_has_an_error_for_each_piece_that_is_none(write_lines: Callable[..., Path]) -> None:
    odd = [human(ASKED), gpt(GOOD), human(" "), gpt("Tom."), human("And then?")]
    rows = [
        {"image": IMAGE, "conversations": odd},
        {"image": IMAGE, "conversations": [human(ASKED), gpt(GOOD)]},
        {"image": IMAGE, "conversations": [gpt(GOOD)]},
        {"image": IMAGE, "conversations": []},
        {"image": IMAGE, "conversations": [human(ASKED), human(ASKED), gpt(GOOD)]},
        {"image": IMAGE, "conversations": [human(ASKED), {"from": "tool", "value": "x"}, human(ASKED)]},
        {"image": IMAGE, "conversations": [human(ASKED)] * 257},
    ]
    found = list(read_source(Source("s", str(write_lines(rows)), respond=True)))
    assert {row.format for row in found} == {"llava-instruct"}
    assert [(row.locator.rpartition("#")[2], row.error.kind if row.error else None) for row in found] == [
        ("0.0", None),
        ("0.1", "question"),
        ("0.2", None),
        ("1", None),
        ("2", "question"),
        ("3", "question"),
        ("4.0", None),
        ("4.1", "turns"),
        ("5.0", "turns"),
        ("5.1", "turns"),
        ("6", "turns"),
    ]


def test_rlhf_v_text_that_is_not_json_is_an_error() -> None:
    for packed in ("{", "[1]", "null", "[" * 100_000):
        with pytest.raises(RowError) as failure:
            FORMATS["rlhf-v"].read(FORMATS["rlhf-v"].example | {"text": packed})
        assert failure.value.kind == "format"


def test_unknown_columns_show_what_was_found_and_the_closest_format(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"picture": IMAGE, "question": ASKED, "chosen": GOOD, "rejected": BAD}])
    with pytest.raises(UnknownFormatError) as failure:
        detect_formats(Source("s", str(path)))
    message = str(failure.value)
    assert message.startswith(f"{path}: ")
    assert "picture (text), question (text), chosen (text), rejected (text)" in message
    assert "Closest is spa-vl, which also needs `image|video`." in message


@pytest.mark.parametrize(
    "row",
    [
        {"question": ASKED, "answer": GOOD, "chosen_image": IMAGE, "rejected_image": "b.png"},
        {"prompt": ASKED, "image_chosen": IMAGE, "image_rejected": "b.png"},
        {"caption": ASKED, "jpg_0": IMAGE, "jpg_1": "b.png", "label_0": 1.0, "label_1": 0.0},
    ],
)
def test_rows_that_prefer_an_image_say_so(row: dict[str, object], write_lines: Callable[..., Path]) -> None:
    first, second = [name for name, value in row.items() if value in (IMAGE, "b.png")]
    rows = list(read_source(Source("s", str(write_lines([row] * 3)))))
    assert [found.error.kind if found.error else None for found in rows] == ["image_pair"] * 3
    assert rows[0].error is not None
    assert f"prefer one of two images (`{first}`, `{second}`)" in rows[0].error.message


def test_images_of_both_responses_beside_the_image_of_a_format_are_no_pair() -> None:
    columns = columns_of([FORMATS["spa-vl"].example | {"chosen_image": IMAGE, "rejected_image": IMAGE}])
    assert detect(columns).name == "spa-vl"


def test_wrong_type_in_a_column_is_named_with_the_closest_format() -> None:
    with pytest.raises(UnknownFormatError, match=r"Closest is spa-vl, which also needs `chosen` \(text\)"):
        detect(columns_of([FORMATS["spa-vl"].example | {"chosen": 3}]))


def test_a_null_in_the_first_row_does_not_hide_a_column(write_lines: Callable[..., Path]) -> None:
    path = write_lines([FORMATS["trl"].example | {"chosen": None}, FORMATS["trl"].example])
    rows = list(read_source(Source("s", str(path))))
    assert [row.format for row in rows] == ["trl", "trl"]
    assert [row.error.kind if row.error else None for row in rows] == ["responses", None]


def test_unknown_format_name_is_answered_with_the_nearest_or_all() -> None:
    with pytest.raises(SettingsError, match=r"no preference format 'rlaif'; did you mean rlaif-v\?"):
        Source("s", "x", format="rlaif")
    with pytest.raises(SettingsError, match=r"no preference format 'zzz'; there are vlfeedback, .*rlaif-v"):
        Source("s", "x", format="zzz")


def test_a_format_of_ones_own_is_named_by_import_path(
    write_lines: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_formats.py").write_text(
        "from carevl.data.formats.base import Format\n"
        "from carevl.data.rows import Preference, RowError\n"
        "def read(row):\n"
        "    if row['q'] is None:\n"
        "        raise RowError('question', 'no q')\n"
        "    return Preference(row['q'], (row['good'], row['bad']), (1.0, 0.0), row['picture'])\n"
        "MINE = Format('mine', {'q': 'text'}, read, {})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = {"picture": IMAGE, "q": ASKED, "good": GOOD, "bad": BAD}
    path = write_lines([row, row | {"q": None}])
    good, bad = read_source(Source("s", str(path), format="own_formats:MINE"))
    assert (good.format, bad.format) == ("mine", "mine")
    assert good.preference is not None
    assert (good.preference.question, good.preference.responses) == (ASKED, (GOOD, BAD))
    assert bad.error is not None
    assert bad.error.kind == "question"
    with pytest.raises(SettingsError, match="own_formats has no YOURS"):
        Source("s", str(path), format="own_formats:YOURS")
