"""The world tells the truth, and what it publishes does not give the truth away."""

import hashlib
import itertools
import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest

from carevl.miniworld.items import draw_items
from carevl.miniworld.publish import GROUPS, publish
from carevl.miniworld.questions import ERRORS, KINDS, NUMBERS, caption
from carevl.miniworld.scenes import GRID, POOLS, Scene, Thing, draw_scene, place, world_rng


@pytest.fixture(scope="module")
def drawn():
    return [
        item
        for _, items in itertools.islice(draw_items("train", "test", n_responses=(2, 3, 4), per_image=2), 3000)
        for item in items
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "w"
    publish(out, 3000, 5, calibration_images=400)
    return out


def _read(scene_key):
    cells = [None if cell == "-" else cell.split() for cell in scene_key.split("|")]
    return Scene(tuple(Thing(c[2], c[1], c[0]) if c else None for c in cells))


def _singular(noun):
    return noun.removesuffix("es") if noun == "crosses" else noun.removesuffix("s")


def _number(scene, group):
    """How many things `red circles`, `circles` or `red shapes` are, counted from the grid."""
    *colour, noun = group.split()
    shape = _singular(noun)
    return sum((not colour or t.colour == colour[0]) and shape in ("shape", t.shape) for t in scene.cells if t)


def _where(scene, colour, shape):
    cells = [i for i, t in enumerate(scene.cells) if t and (t.colour, t.shape) == (colour, shape)]
    assert len(cells) == 1, "a thing that a question names alone must be alone"
    return cells[0]


def _solve(scene, kind, text):  # noqa: PLR0911
    """An independent solver: reads the question's words and the grid, and nothing else."""
    if kind == "count":
        return NUMBERS[_number(scene, re.search(r"How many (.+?) (?:are|does)", text)[1])]
    if kind == "colour":
        shape = re.search(r"the (\w+)(?: have)?\?", text)[1]
        [thing] = [t for t in scene.cells if t and t.shape == shape]
        return thing.colour
    if kind == "position":
        return place(_where(scene, *re.search(r"the (\w+) (\w+)\?", text).groups()))
    if kind == "existence":
        colour, shape = re.search(r"a (\w+) (\w+)(?: in the image)?\?", text).groups()
        return "yes" if any(t and (t.colour, t.shape) == (colour, shape) for t in scene.cells) else "no"
    if kind == "comparison":
        a, b = re.search(r"(?:more|Do) (.+?) (?:than|outnumber) (.+?)\?", text).groups()
        return "yes" if _number(scene, a) > _number(scene, b) else "no"
    if kind == "relation":
        ca, sa, word, cb, sb = re.search(
            r"the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)", text
        ).groups()
        (ra, xa), (rb, xb) = divmod(_where(scene, ca, sa), GRID), divmod(_where(scene, cb, sb), GRID)
        return "yes" if {"left of": xa < xb, "right of": xa > xb, "above": ra < rb, "below": ra > rb}[word] else "no"
    if kind == "same":
        a, b, what = re.search(r"the (.+?) and the (.+?) have the same (\w+)", text).groups()
        found = []
        for name in (a, b):
            [thing] = [t for t in scene.cells if t and f"{t.colour} {t.shape}".endswith(name)]
            found.append(thing.colour if what == "color" else thing.size)
        return "yes" if found[0] == found[1] else "no"
    return None


def test_answers_agree_with_an_independent_solver(drawn):
    solved = Counter()
    for item in drawn:
        if answer := _solve(item.scene, item.question.kind, item.question.text):
            assert answer == item.question.answer, (item.scene.key, item.question)
            solved[item.question.kind] += 1
    assert set(solved) == set(KINDS) - {"description"}
    assert min(solved.values()) > 100


def test_right_and_wrong_responses_say_what_they_should(drawn):
    for item in drawn:
        for response in item.responses:
            assert set(response.errors) <= set(ERRORS)
            if item.question.kind in ("existence", "comparison", "relation", "same"):
                said_yes = bool(re.search(r"\b[Yy]es\b", response.text))
                assert said_yes == ((item.question.answer == "yes") == response.right)
            elif item.question.kind == "position":
                said = re.search(r"[Ii]n the ((?:\w+ )?(?:left|right|center))", response.text)[1]
                assert (said == item.question.answer) == response.right
            elif item.question.kind == "colour":
                said = re.search(r"\b(red|green|blue|yellow)\b", response.text, re.IGNORECASE)[1].lower()
                assert (said == item.question.answer) == response.right
        assert any(r.right for r in item.responses)
        assert any(not r.right for r in item.responses)
        assert len({r.text for r in item.responses}) == len(item.responses)


def test_descriptions_differ_from_the_truth_exactly_where_they_say(drawn):
    seen = Counter()
    for item in drawn:
        if item.question.kind != "description":
            continue
        truth = {f"{t.size} {t.colour} {t.shape} in the {place(i)}" for i, t in item.scene.things}
        for response in item.responses:
            said = set(
                re.findall(r"\ba (\w+ \w+ \w+ in the (?:\w+ )?(?:left|right|center))", response.text, re.IGNORECASE)
            )
            assert (said == truth) == response.right, (truth, response)
            if response.errors == ("omission",):
                assert said < truth
            if response.errors == ("hallucinated_object",):
                assert said > truth
            seen[response.errors] += 1
    assert len(seen) >= 5


def test_captions_leave_out_positions_and_sizes(drawn):
    for item in drawn[:500]:
        assert not re.search(r"small|large|top|left|right|center|bottom", caption(item.scene))
        counts = re.findall(r"(one|two|three|four|five|six) (\w+) (\w+)", caption(item.scene))
        assert sum(NUMBERS.index(n) for n, _, _ in counts) == len(item.scene.things)


def test_scenes_with_one_caption_but_two_answers_exist_only_where_captions_cannot_decide(drawn):
    """A caption that decides an item gives the same answer for every scene with that caption."""
    answers = {}
    for item in drawn:
        key = (caption(item.scene), item.question.text)
        if item.question.kind != "description" and item.decidable:
            assert answers.setdefault(key, item.question.answer) == item.question.answer


def test_wording_and_length_do_not_tell_right_from_wrong(drawn):
    longer_is_right = Counter()
    for item in drawn:
        if len(item.responses) == 2:
            a, b = (len(r.text) for r in item.responses)
            if a != b:
                longer_is_right[item.responses[0 if a > b else 1].right] += 1
    share = longer_is_right[True] / longer_is_right.total()
    assert abs(share - 0.5) < 0.05, share
    first_right = sum(item.responses[0].right for item in drawn) / len(drawn)
    assert abs(first_right - 0.5) < 0.05


def test_yes_and_no_are_balanced(drawn):
    for kind in ("existence", "comparison", "relation", "same"):
        answers = Counter(item.question.answer for item in drawn if item.question.kind == kind)
        assert abs(answers["yes"] / answers.total() - 0.5) < 0.08, (kind, answers)


def test_pools_cover_every_scene_once():
    assert sorted(b for buckets in POOLS.values() for b in buckets) == list(range(100))
    rng = world_rng("pools")
    for pool in POOLS:
        assert draw_scene(rng, pool).pool == pool


def test_published_splits_share_no_image_and_no_scene(world):
    images, scenes = {}, {}
    for split in ("train", "calibration", "dev", "test"):
        rows = pq.read_table(world / "truth" / f"{split}.parquet").to_pylist()
        images[split], scenes[split] = {r["image_sha256"] for r in rows}, {r["scene"] for r in rows}
        assert {_read(scene).pool for scene in scenes[split]} == {split}
    for a, b in itertools.combinations(images, 2):
        assert not images[a] & images[b]
        assert not scenes[a] & scenes[b]


def test_truth_sidecar_names_the_published_images(world):
    published = {row["image"]["bytes"] for row in pq.read_table(world / "train/rlaif_v.parquet").to_pylist()}
    published |= {row["image"]["bytes"] for row in pq.read_table(world / "train/vlfeedback.parquet").to_pylist()}
    truth = {row["image_sha256"] for row in pq.read_table(world / "truth/train.parquet").to_pylist()}
    assert {hashlib.sha256(data).hexdigest() for data in published} == truth


def test_source_preference_is_right_in_seventy_percent_whatever_the_kind(world):
    truth = {r["row"]: r for r in pq.read_table(world / "truth/train.parquet").to_pylist()}
    right = Counter()
    kinds = Counter()
    for row in pq.read_table(world / "train/rlaif_v.parquet").to_pylist():
        item = truth[str(row["idx"])]
        [true_text] = [r["text"] for r in item["responses"] if r["right"]]
        kinds[item["kind"]] += 1
        right[item["kind"]] += row["chosen"] == true_text
    assert abs(right.total() / kinds.total() - 0.7) < 0.03
    for kind, n in kinds.items():
        assert abs(right[kind] / n - 0.7) < 4 * (0.21 / n) ** 0.5, kind


def test_calibration_labels_are_true(world):
    truth = {r["row"]: r for r in pq.read_table(world / "truth/calibration.parquet").to_pylist()}
    for row in pq.read_table(world / "calibration/rlaif_v.parquet").to_pylist():
        assert [r["text"] for r in truth[str(row["idx"])]["responses"] if r["right"]] == [row["chosen"]]


def test_same_seed_same_bytes_and_another_seed_other_bytes(world, tmp_path):
    publish(tmp_path / "again", 3000, 5, calibration_images=400)
    publish(tmp_path / "other", 30, 6, calibration_images=10)

    def sums(root):
        return {f.relative_to(root): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()}

    assert sums(world) == sums(tmp_path / "again")
    train = "train/rlaif_v.parquet"
    rows = [pq.read_table(root / train).slice(0, 5).to_pylist() for root in (world, tmp_path / "other")]
    assert rows[0] != rows[1]


def test_dev_set_has_the_three_groups_of_vl_rewardbench(world):
    rows = pq.read_table(world / "dev/vl_rewardbench.parquet").to_pylist()
    groups = Counter(group for row in rows for prefix, (group, _) in GROUPS.items() if row["id"].startswith(prefix))
    assert set(groups) == {"general", "hallucination", "reasoning"}
    assert groups.total() == len(rows)
    assert {tuple(sorted(row["human_ranking"])) for row in rows} == {(0, 1)}


def test_mllm_judge_files_point_at_images_and_carry_labels(world):
    root = world / "dev/mllm_judge"
    files = {
        task: [json.loads(line) for line in (root / f"{task}.jsonl").read_text().splitlines()]
        for task in ("score", "pair", "batch")
    }
    for row in itertools.chain(*files.values()):
        assert (root / row["image_path"]).read_bytes().startswith(b"\x89PNG")
    assert {row["human"] for row in files["score"]} <= {1, 2, 3, 5}
    assert {row["human_answer"] for row in files["pair"]} == {"A", "B", "C"}
    assert all(sorted(row["human_answer"]) == list("ABCD") for row in files["batch"])


def test_drawing_into_a_directory_in_use_is_refused(world):
    with pytest.raises(FileExistsError, match="not empty"):
        publish(world, 10, 1)


def test_the_generator_of_a_world_gives_the_published_numbers():
    assert world_rng("pools").random() == 0.9436430038923719
    assert world_rng("scenes", "train", 4).random() == 0.7708931159742278
