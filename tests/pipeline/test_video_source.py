"""A source of five videos runs through to a judge, with a caption for every frame or one for a video."""

import itertools
import json

import pytest

from carevl.data.shown_videos import videos_of
from carevl.miniworld.items import draw_items
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.table import Table
from tests.helpers.small_run import SMALL
from tests.helpers.videos import encode_clip

pytestmark = [pytest.mark.nightly, pytest.mark.train]

CLIPS, FRAMES = 5, 2
LABELLED = 40
"""Images of the labelled source."""


def _write_source(directory):
    """Five clips of two scenes each, and the questions about the second scene of each."""
    drawn = list(itertools.islice(draw_items("test", "mixed"), 2 * CLIPS))
    rows = []
    for n, ((before, _), (after, items)) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        scenes = [before.convert("RGB"), after.convert("RGB")]
        (directory / f"{n}.mp4").write_bytes(encode_clip([scene for scene in scenes for _ in range(5)]))
        for item in items:
            right, wrong = (next(r.text for r in item.responses if r.right == is_right) for is_right in (True, False))
            content = [{"type": "video", "video": f"{n}.mp4"}, {"type": "text", "text": item.question.text}]
            answers = {
                "chosen": [{"role": "assistant", "content": right}],
                "rejected": [{"role": "assistant", "content": wrong}],
            }
            rows.append({"prompt": [{"role": "user", "content": content}], **answers})
    file = directory / "clips.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _settings(file, frames, *others, more=()):
    labelled = {"path": "miniworld:calibration/rlaif_v.parquet", "labels": True, "split": "calibration"}
    declared = json.dumps([{"path": str(file)}, *({"path": path} for path in others), labelled])
    own = [f"data.sources={declared}", f"data.video.frames={frames}", "benchmarks=[]", *more]
    return load_settings(
        "mini", [*SMALL[:-3], *own, "router.threshold=0.6", "select.min_gap=0.05", "cluster.num_cpus=2"]
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return _write_source(tmp_path_factory.mktemp("videos"))


def _items(run):
    [ingest] = (run.root / "ingest").iterdir()
    return [item for item in Ingested(ingest).items.read().to_pylist() if videos_of(item)]


def _captions(run):
    [table] = (run.root / "caption").iterdir()
    return Table(table).read().to_pylist()


@pytest.mark.parametrize(("frames", "others"), [(1, []), (FRAMES, ["miniworld:train/rlaif_v.parquet"])])
def test_a_source_of_five_videos_ends_with_a_judge(frames, others, ray, source, tmp_path):
    """Of two frames, with others beside it: the shipped judge knows one image at a time, and has to learn the form."""
    run = Run(tmp_path / "run")
    done = run_pipeline(_settings(source, frames, *others), run, lambda _: None, "dpo")
    assert {stage.name: stage.errors for stage in done if stage.errors} == {}
    items = _items(run)
    shown = {name for item in items for name in item["images"]}
    assert {len(item["images"]) for item in items} == {frames}
    assert len(shown) == CLIPS * frames
    assert {row["image_id"] for row in _captions(run)} >= shown
    asked = [*(run.root / "demonstrate").glob("*/judgments"), *(run.root / "sample").iterdir()]
    judged = {row["item_id"] for table in asked for row in Table(table).read().to_pylist() if row["text"]}
    assert judged & {item["item_id"] for item in items}
    [trained] = (run.root / "dpo").iterdir()
    assert (trained / "judge" / "config.json").exists()


def test_one_caption_of_a_video_is_read_by_every_expert(ray, source, tmp_path):
    run = Run(tmp_path / "run")
    settings = _settings(source, FRAMES, more=["captioner.video=one"])
    done = run_pipeline(settings, run, lambda _: None, "route")
    assert {stage.name: stage.errors for stage in done if stage.errors} == {}
    captions = {row["image_id"] for row in _captions(run)}
    items = _items(run)
    frames = {name for item in items for name in item["images"]}
    assert not frames & captions
    assert len(captions) == CLIPS + LABELLED
    done = run_pipeline(settings, run, lambda _: None, "route")
    assert {stage.action for stage in done} == {"skipped"}
