"""`data.resize_pixels`: captioner and judge see images of at most so many pixels, and fingerprints say so."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from carevl import RewardModel
from carevl.benchmarks.command import PREDICTIONS, EvalRequest, evaluate
from carevl.benchmarks.data import load
from carevl.benchmarks.question_tables import to_questions
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Image as Named
from carevl.benchmarks.run import AnswerProcessor
from carevl.data.images import ImageLimits, decode_rgb
from carevl.models.engines.base import Engine, Generation
from carevl.models.judge_spec import JudgeSpec
from carevl.pipeline.keys import stage_keys
from carevl.settings.loader import load_settings
from carevl.stages import caption, sample, sampling
from carevl.stages.base import judge_pixels
from carevl.store.run import Run
from carevl.store.schemas import IMAGES, ITEMS, QUESTION_IMAGES
from tests.helpers.image_kinds import KINDS, draw_picture
from tests.helpers.items import NO_LOANS, about

READS_PIXELS = {"caption", "demonstrate", "sft", "sample", "dpo", "evaluate/base", "evaluate/phase1", "evaluate/phase2"}


class SizesEngine(Engine):
    """Writes the size of a picture, and remembers it."""

    name = "sizes"

    def __init__(self):
        self.shown = []

    def generator(self, model):
        return self

    def scorer(self, model, *, batch_tokens, parity_tolerance):
        raise NotImplementedError

    def generate(self, requests, **arguments):
        self.shown += [image for request in requests for image in request.images]
        return [Generation(f"{request.images[0].width} x {request.images[0].height}", 1, False) for request in requests]


SIZES = SizesEngine()
SETTINGS = load_settings("mini", [f"{model}.engine={__name__}:SIZES" for model in ("captioner", "judge")])


@pytest.fixture
def shown():
    SIZES.shown = []
    return SIZES.shown


@pytest.fixture(scope="module")
def photograph():
    """An upright picture of 300 x 400 pixels that lies on its side in the file, as phones store it."""
    file, image = io.BytesIO(), Image.effect_noise((400, 300), 80).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def _tables(files):
    keys = [f"{n:02d}" for n in range(len(files))]
    item = {"question": "What?", "responses": ["A.", "B."]}
    route = {"first": 0, "second": 1, "route": "low", "winner": 0, "probability": 0.5}
    images = [{"image_id": key, "bytes": file} for key, file in zip(keys, files, strict=True)]
    return {
        "images": pa.Table.from_pylist(images, IMAGES),
        **NO_LOANS,
        "items": pa.Table.from_pylist([{"item_id": key, **about(key), **item} for key in keys], ITEMS),
        "routes": pa.Table.from_pylist([{"item_id": key, **route} for key in keys]),
    }


def _questions(files):
    fields = {"benchmark": "vl-rewardbench", "protocol": "strict", "sample": 0, "task": "pairwise", "order": (0, 1)}
    keys = [f"{n:02d}" for n in range(len(files))]
    questions = [Question(**fields, key=key, prompt="Which?", images=(Named(key),), response=None) for key in keys]
    images = [{"name": key, "bytes": file} for key, file in zip(keys, files, strict=True)]
    return {"questions": to_questions(questions), "images": pa.Table.from_pylist(images, QUESTION_IMAGES)}


def _show(stage, files, prepared, pixels=None):
    """Let a stage show images to its model."""
    tables = _questions(files) if stage == "evaluate" else _tables(files)
    processor = {
        "caption": lambda: caption.CaptionProcessor(SETTINGS.captioner, pixels),
        "sample": lambda: sampling.JudgeProcessor(SETTINGS.judge, sample.sampling_spec(SETTINGS), pixels),
        "evaluate": lambda: AnswerProcessor(SETTINGS.judge, "j", {"vl-rewardbench": "vl-rewardbench"}, 0, pixels),
    }[stage]()
    if prepared:
        tables = {**tables, **processor.preprocess(tables)}
    processor.load().process(tables)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("stage", ["caption", "sample", "evaluate"])
@pytest.mark.parametrize(("pixels", "size"), [(None, (300, 400)), (120_000, (300, 400)), (30_000, (150, 200))])
def test_models_are_shown_so_many_pixels(photograph, shown, stage, prepared, pixels, size):
    _show(stage, [photograph], prepared, pixels)
    expected = decode_rgb(photograph, ImageLimits(), pixels)
    assert expected.size == size
    assert shown
    assert all(image.size == size and image.tobytes() == expected.tobytes() for image in shown)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("stage", ["caption", "sample", "evaluate"])
def test_models_are_shown_the_same_pixels_of_every_kind_of_file(shown, stage, prepared):
    files = [save(draw_picture(n)) for n, save in enumerate(KINDS.values())]
    _show(stage, files, prepared)
    assert {image.tobytes() for image in shown} == {decode_rgb(file, ImageLimits()).tobytes() for file in files}


@pytest.mark.parametrize("opened", [False, True])
def test_a_finished_judge_is_shown_the_same_pixels_of_every_kind_of_file(shown, opened):
    files = [save(draw_picture(n)) for n, save in enumerate(KINDS.values())]
    images = [Image.open(io.BytesIO(file)) if opened else file for file in files]
    judge = RewardModel("miniworld:judge", engine=f"{__name__}:SIZES")
    judge.judge_all(images, ["What?"] * len(files), [["A.", "B."]] * len(files))
    assert {image.tobytes() for image in shown} == {decode_rgb(file, ImageLimits()).tobytes() for file in files}


def _fingerprint_inputs(run, *overrides):
    sources = f"data.sources=[{{path: {run.root}/pairs.jsonl}}]"
    keys = stage_keys(load_settings("mini", [sources, "benchmarks=[]", *overrides]), run)
    return {name: key.fingerprint_inputs for name, key in keys.items()}


def test_only_stages_that_read_pixels_depend_on_it_themselves(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    before, after = _fingerprint_inputs(run), _fingerprint_inputs(run, "data.resize_pixels=5000")
    assert {name for name, inputs in after.items() if "'resize_pixels': 5000" in str(inputs)} == READS_PIXELS
    assert not any("resize_pixels" in str(inputs) for inputs in before.values())
    assert before["ingest"] == after["ingest"]


def test_the_presets_for_gpus_bound_photographs():
    for preset, pixels in (("single-gpu", 1_048_576), ("multi-node", 1_048_576), ("small-gpu", 524_288)):
        assert load_settings(preset, ["data.sources.0.path=/x"]).data.resize_pixels == pixels


@pytest.mark.ray
def test_an_evaluation_by_itself_shows_a_judge_what_it_was_trained_to_see(ray, photograph, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    JudgeSpec(resize_pixels=30_000).write(tmp_path)
    (tmp_path / "1.jpg").write_bytes(photograph)
    row = {"id": "RLHF-V-1", "query": "q", "response": ["a", "b"], "human_ranking": [0, 1], "image": "1.jpg"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    request = EvalRequest(str(tmp_path), f"{__name__}:SIZES", protocols=["strict"])
    list(evaluate(load("vl-rewardbench", tmp_path / "rows.jsonl"), request, tmp_path / "out", lambda _: None))
    assert {row["text"] for row in pq.read_table(tmp_path / "out" / PREDICTIONS).to_pylist()} == {"150 x 200"}


def test_a_judge_that_was_trained_with_a_bound_keeps_it_unless_the_run_has_its_own(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    JudgeSpec(resize_pixels=2000).write(tmp_path)
    assert judge_pixels(load_settings("mini", [f"judge.path={tmp_path}"])) == 2000
    assert judge_pixels(load_settings("mini", [f"judge.path={tmp_path}", "data.resize_pixels=5000"])) == 5000
    assert judge_pixels(load_settings("mini")) is None
