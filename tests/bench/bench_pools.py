"""Captioner and sampler through their pools against bare vLLM, and three expert pools against the slowest of them.

    python tests/bench/bench_pools.py [--figures captioner_share sampler_share pools_share prepared_share]
        [--rows 96] [--parts 4] [--preparers 1]

`captioner_share`, `sampler_share`: generated tokens per second through the pool of the stage (parts read, images
decoded, prompts written, answers parsed, parts checked and written, the actor fed) against `LLM.generate` of vLLM on
the same prompts, ready in memory. Both run in the same actor on the same engine, part by part in turns, caches emptied
in between; the first part is warm-up. With `--preparers 0` the actor decodes the images itself. `pools_share`: rows
per second of a stage with three expert pools, whose engines are waits, against its slowest pool alone, from the first
part to the last. `prepared_share`: images per second through the captioner's pool with one preparer when the images
are photographs (drawn noise where `shared/` has none) and the engine is a wait as long as decoding them, against the
wait alone; `without` is the same ratio of a pool without. Prints one JSON line per figure.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.pools import run_jobs
from carevl.data.pictures import decode_images
from carevl.miniworld.items import draw_items
from carevl.models.engines.base import Generation
from carevl.models.prompts import render_prompt
from carevl.settings.loader import load_settings
from carevl.settings.models import Pool
from carevl.stages import sample
from carevl.stages.caption import CaptionProcessor
from carevl.stages.sampling import JudgeProcessor
from carevl.store.schemas import IMAGES, ITEMS, SCORES
from carevl.store.table import Table
from tests.helpers.items import about

SETTINGS = load_settings("mini", ["captioner.engine=vllm", "judge.engine=vllm", "judge.pool.concurrency=1"])
PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


class Engine:
    """An engine whose calls can be listened to: while it is deaf it writes nothing, and only notes what is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.deaf = inner, False
        self.requests: Sequence[Any] = ()
        self.how: Mapping[str, Any] = {}

    def generate(self, requests: Sequence[Any], **how: Any) -> list[Generation]:
        if self.deaf:
            self.requests, self.how = requests, how
            return [Generation("", 1, False)] * len(requests)
        made: list[Generation] = self.inner.generate(requests, **how)
        return made


@dataclass
class Paired(Processor):
    """A stage's processor that also times vLLM's own call on the same prompts."""

    inner: CaptionProcessor | JudgeProcessor
    log: Path
    turn: int = 0

    def setup(self) -> None:
        self.inner.setup()
        self.inner.engine = Engine(self.inner.engine)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        return self.inner.preprocess(tables)

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        began = time.perf_counter()
        engine: Any = self.inner.engine
        llm = engine.inner.engine
        engine.deaf = True
        self.inner.process(tables)
        engine.deaf = False
        texts, sampling = prompts(engine)
        arms: dict[str, Callable[[], Any]] = {
            "ours": lambda: self.inner.process(tables),
            "peer": lambda: llm.generate(texts, sampling, use_tqdm=False),
        }
        names = ["ours", "peer"] if self.turn % 2 else ["peer", "ours"]
        self.turn += 1
        timed = {name: run_timed(llm, arms[name]) for name in names}
        ours, peer = timed["ours"][0], timed["peer"][0]
        seconds = {name: taken for name, (_, taken) in timed.items()}
        line = {
            "tokens": sum(ours["tokens"].to_pylist()),
            "peer_tokens": sum(len(one.outputs[0].token_ids) for one in peer),
            "began": began,
            "ended": time.perf_counter(),
        }
        with self.log.open("a") as file:
            file.write(json.dumps(line | seconds) + "\n")
        return ours


def run_timed(llm: Any, run: Callable[[], Any]) -> tuple[Any, float]:
    """Run with empty caches; return the result and the seconds that it took."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def prompts(engine: Engine) -> tuple[list[Any], list[Any]]:
    """What the engine was asked, as vLLM takes it."""
    from vllm import SamplingParams

    heat = engine.how.get("temperature", 0.0)
    texts = [
        {
            "prompt": render_prompt(engine.inner.processor, request.turn),
            "multi_modal_data": {"image": list(request.images)},
        }
        for request in engine.requests
    ]
    most = engine.how["max_tokens"]
    sampling = [
        SamplingParams(temperature=heat, max_tokens=most, seed=request.seed if heat else None)
        for request in engine.requests
    ]
    return texts, sampling


def draw(directory: Path, parts: int, rows: int) -> dict[str, Table]:
    """Tables `images`, `items` and `routes` of drawn items; every pair is low."""
    tables = {name: Table(directory / name) for name in ("images", "items", "routes")}
    drawn = draw_items("test", "bench-pools")
    for part in range(parts):
        images, items, routes = [], [], []
        for n, (image, [item, *_]) in enumerate(itertools.islice(drawn, rows)):
            file = pa.BufferOutputStream()
            image.save(file, "PNG")
            key = f"{part}-{n}"
            images.append({"image_id": key, "bytes": file.getvalue().to_pybytes()})
            responses = [response.text for response in item.responses][:2]
            items.append({"item_id": key, **about(key), "question": item.question.text, "responses": responses})
            routes.append({"item_id": key, "first": 0, "second": 1, "route": "low", "winner": 0, "probability": 0.5})
        tables["images"].write(part, pa.Table.from_pylist(images, IMAGES))
        tables["items"].write(part, pa.Table.from_pylist(items, ITEMS))
        tables["routes"].write(part, pa.Table.from_pylist(routes))
    return tables


def tell(figure: str, value: float, peer: float, unit: str, goal: float | None, **more: object) -> None:
    """One line: ours and the peer's rate."""
    line = {"figure": figure, "value": round(value, 2), "unit": unit, "peer": round(peer, 2)}
    load = round(os.getloadavg()[0], 1)
    print(json.dumps(line | {"ratio": round(value / peer, 3), "goal": goal, "load": load, **more}), flush=True)


def ends_of(jobs: Sequence[PoolJob], parts: int) -> dict[str, list[float]]:
    """Run jobs; return by job when each of its parts was done."""
    ends: dict[str, list[float]] = {job.name: [] for job in jobs}
    run_jobs(jobs, range(parts), 1.0, lambda name, tally, n: ends[name].append(time.perf_counter()))
    return ends


def generation_share(figure: str, job: PoolJob, log: Path, parts: int) -> None:
    """The pool's tokens per second against vLLM's, by the actor's clock, less what belongs to the measurement alone."""
    run_jobs([job], range(parts), 1.0, lambda name, tally, n: None)
    first, *lines = [json.loads(line) for line in log.read_text().splitlines()]
    extra = sum(line["ended"] - line["began"] - line["ours"] for line in lines)
    ours = lines[-1]["ended"] - first["ended"] - extra
    inside, peer = (sum(line[name] for line in lines) for name in ("ours", "peer"))
    rate = sum(line["tokens"] for line in lines) / ours
    peer_rate = sum(line["peer_tokens"] for line in lines) / peer
    shares = {"engine_and_rows": round(inside / ours, 3), "feeding_and_parts": round(1 - inside / ours, 3)}
    tell(figure, rate, peer_rate, "tokens/s", 0.95, seconds=round(ours, 1), **shares)


def captioner(directory: Path, parts: int, rows: int, preparers: int) -> None:
    """`captioner_share`."""
    tables = draw(directory, parts, 2 * rows)
    sources = {"images": tables["images"]}
    pool = SETTINGS.captioner.pool.model_copy(update={"preparers": preparers})
    log, target = directory / "captions.log", Table(directory / "captions")
    processor = Paired(CaptionProcessor(SETTINGS.captioner), log)
    job = PoolJob("caption", processor, sources, target, pool, "image_id", ("view",))
    generation_share("captioner_share", job, log, parts)


def sampler(directory: Path, parts: int, rows: int, preparers: int) -> None:
    """`sampler_share`."""
    sources = draw(directory, parts, max(1, rows // 6))
    spec = sample.sampling_spec(SETTINGS)
    identity = ("task", "order", "sample")
    pool = SETTINGS.judge.pool.model_copy(update={"preparers": preparers})
    log, target = directory / "judged.log", Table(directory / "judged")
    processor = Paired(JudgeProcessor(SETTINGS.judge, spec), log)
    job = PoolJob("sample", processor, sources, target, pool, "item_id", identity, spec.item_ids)
    generation_share("sampler_share", job, log, parts)


@dataclass
class WaitingExpert(Processor):
    """An expert that takes its time over a part."""

    seconds: float

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        time.sleep(self.seconds)
        name, keys = f"{self.seconds}", tables["items"]["item_id"].to_pylist()
        rows = [{"item_id": key, "expert": name, "view": "none", "scores": [0.0, 1.0]} for key in keys]
        return pa.Table.from_pylist(rows, SCORES)


def pools(directory: Path, parts: int, rows: int, preparers: int) -> None:
    """`pools_share`: experts that take 1, 2 and 3 seconds over a part."""
    del preparers
    parts *= 5
    items = Table(directory / "items")
    for part in range(parts):
        drawn = [{"item_id": f"{part}-{n}", **about("i"), "responses": ["a", "b"]} for n in range(rows)]
        items.write(part, pa.Table.from_pylist(drawn, ITEMS))

    def jobs(kind: str, speeds: Sequence[float]) -> list[PoolJob]:
        pool = Pool(num_cpus=0.5)
        targets = {s: Table(directory / f"{kind}-{s}") for s in speeds}
        return [
            PoolJob(f"{kind}-{s}", WaitingExpert(s), {"items": items}, targets[s], pool, "item_id", ()) for s in speeds
        ]

    spans = {}
    for kind, speeds in (("alone", (3.0,)), ("three", (1.0, 2.0, 3.0))):
        ends = ends_of(jobs(kind, speeds), parts)
        spans[kind] = max(end[-1] for end in ends.values()) - ends[f"{kind}-3.0"][0]
    done = (parts - 1) * rows
    tell("pools_share", done / spans["three"], done / spans["alone"], "rows/s", 0.9, parts=parts)


@dataclass
class WaitingCaptioner(CaptionProcessor):
    """The stage `caption` with an engine that takes its time over a part."""

    seconds: float = 0.0

    def setup(self) -> None:
        self.engine = self

    def generate(self, requests: Sequence[Any], **how: Any) -> list[Generation]:
        """As `Generator.generate`."""
        time.sleep(self.seconds)
        return [Generation("A photograph.", 3, False)] * len(requests)


def prepared(directory: Path, parts: int, rows: int, preparers: int) -> None:
    """`prepared_share`."""
    rows, parts = max(1, rows // 4), 4 * parts
    files = [file.read_bytes() for file in sorted(PHOTOS.glob("*.jpg"))] or [noise()]
    images = Table(directory / "images")
    for part in range(parts):
        drawn = [{"image_id": f"{part}-{n}", "bytes": files[n % len(files)]} for n in range(rows)]
        images.write(part, pa.Table.from_pylist(drawn, IMAGES))
    started = time.perf_counter()
    decode_images(images.read(0))
    seconds = 1.2 * (time.perf_counter() - started)
    arms = {"ahead": max(preparers, 1), "without": 0}
    rates = {}
    for name, count in arms.items():
        pool, target = Pool(num_cpus=1, preparers=count), Table(directory / name)
        processor = WaitingCaptioner(SETTINGS.captioner, seconds=seconds)
        job = PoolJob(name, processor, {"images": images}, target, pool, "image_id", ("view",))
        [ends] = ends_of([job], parts).values()
        rates[name] = (parts - 1) * rows / (ends[-1] - ends[0])
    alone = rows / seconds
    more = {"without": round(rates["without"] / alone, 3), "photographs": PHOTOS.exists(), "wait": round(seconds, 3)}
    tell("prepared_share", rates["ahead"], alone, "images/s", None, **more)


def noise() -> bytes:
    """A JPEG that is as hard to decode as a photograph."""
    file = io.BytesIO()
    Image.effect_noise((1600, 1200), 80).convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


FIGURES = {"captioner_share": captioner, "sampler_share": sampler, "pools_share": pools, "prepared_share": prepared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--preparers", type=int, default=1)
    arguments = parser.parse_args()
    with ray_cluster(SETTINGS.cluster), tempfile.TemporaryDirectory() as directory:
        for name in arguments.figures:
            FIGURES[name](Path(directory) / name, arguments.parts, arguments.rows, arguments.preparers)


if __name__ == "__main__":
    main()
