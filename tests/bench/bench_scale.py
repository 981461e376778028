"""Pools at scale with simulated engines: 32 GPU replicas over 4 raylets, and a million items through score and route.

    python tests/bench/bench_scale.py [--figures scheduling_32 million_items] [--items 1000000] [--images 3] [--wait 4]

`scheduling_32`: 32 actors of one GPU each on four raylets of eight GPUs that are only counted. Engines are replaced by
waits of `--wait` seconds a part. The value is the share of the replicas' time, from when all are at work until the last
part is done, in which they wait for their engine; perfect packing is 1. `seconds_until_all_busy` counts from the start
of the stage.

`million_items`: rows per second of the stages score and route with an expert that answers at once, the peak memory of
the driver and of Ray's object store, and what fingerprints, commits of parts and the bookkeeping of rows and errors
cost, as a share of the time that a shipped expert takes for the same rows. With `--images` above 1 every item shows so
many, all but the first of other parts; `join_items_per_s` is how fast their captions are joined. Prints one JSON line
per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import PoolJob, Processor, check_keys
from carevl.cluster.pools import run_jobs
from carevl.models.experts import EXPERT_KINDS
from carevl.models.experts.base import score_by_row
from carevl.pipeline.plan import plan_run
from carevl.settings.loader import load_settings
from carevl.settings.models import Pool
from carevl.settings.tree import Cluster, Settings
from carevl.stages import route, score
from carevl.stages.caption import write_borrowed
from carevl.store.ingested import Ingested, borrowed_captions
from carevl.store.run import Run
from carevl.store.schemas import CAPTIONS, IMAGES, ITEMS, SCORES, failures
from carevl.store.table import Table

REPLICAS, RAYLETS = 32, 4


def tell(line: Mapping[str, Any]) -> None:
    """One line."""
    print(json.dumps(line | {"load": round(os.getloadavg()[0], 1)}), flush=True)


@dataclass
class Waiting(Processor):
    """Takes its time over a part, as an engine does, and notes when."""

    seconds: float
    log: str

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        started = time.time()
        time.sleep(self.seconds)
        keys = tables["items"]["item_id"].to_pylist()
        rows = [{"item_id": key, "expert": "waits", "view": "none", "scores": [0.0, 1.0]} for key in keys]
        with Path(self.log, str(os.getpid())).open("a") as file:
            file.write(f"{started} {time.time()}\n")
        return pa.Table.from_pylist(rows, SCORES)


def scheduling(directory: Path, arguments: argparse.Namespace) -> None:
    """`scheduling_32`."""
    import ray
    from ray.cluster_utils import Cluster as Raylets

    parts = REPLICAS * arguments.rounds
    items = Table(directory / "items")
    for part in range(parts):
        items.write(part, pa.Table.from_pylist([{"item_id": str(part), "responses": ["a", "b"]}], ITEMS))
    log = directory / "log"
    log.mkdir(parents=True)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    raylets = Raylets()
    quiet = {"include_dashboard": False, "dashboard_agent_listen_port": None, "object_store_memory": 100_000_000}
    for _ in range(RAYLETS):
        raylets.add_node(num_cpus=REPLICAS // RAYLETS, num_gpus=REPLICAS // RAYLETS, **quiet)
    try:
        with ray_cluster(Cluster(address=raylets.address, rehearse=True)):
            pool = Pool(num_cpus=0.5, num_gpus=1, concurrency=REPLICAS)
            target = Table(directory / "scores")
            job = PoolJob("waits", Waiting(arguments.wait, str(log)), {"items": items}, target, pool, "item_id", ())
            began = time.time()
            tallies = run_jobs([job], range(parts), 0.0, lambda name, tally, n: None)
            ray.shutdown()
    finally:
        raylets.shutdown()
    spans = [
        [tuple(map(float, line.split())) for line in file.read_text().splitlines()] for file in sorted(log.iterdir())
    ]
    all_busy, end = max(one[0][0] for one in spans), max(one[-1][1] for one in spans)
    busy = sum(max(0.0, stop - max(start, all_busy)) for one in spans for start, stop in one)
    share = busy / (REPLICAS * (end - all_busy))
    line = {"figure": "scheduling_32", "value": round(share, 3), "unit": "share of perfect packing", "peer": 1.0}
    line |= {"ratio": round(share, 3), "goal": 0.9, "replicas": len(spans), "parts": parts, "wait": arguments.wait}
    tell(
        line
        | {"seconds_until_all_busy": round(all_busy - began, 1), "busy_share": tallies["waits"].facts()["busy_share"]}
    )


class Instant:
    """A simulated expert: a score by the length of the response, at once."""

    def score(self, conversations: list[tuple[str, str]]) -> list[float]:
        return [0.1 * len(response) for _, response in conversations]


class InstantProcessor(score.ScoreProcessor):
    """The real work of stage `score` over a simulated expert."""

    def setup(self) -> None:
        self.score_rows = score_by_row(Instant())


def draw(directory: Path, n: int, parts: int, n_images: int) -> tuple[Ingested, Table]:
    """Items of two responses, one in twenty with a label, each about its own image and those of items of next parts;
    and the captions of all images."""
    ingested, captions = Ingested(directory), Table(directory / "captions")
    rng = np.random.default_rng(0)
    size = n // parts
    for part in range(parts):
        keys = [f"{part:04d}{i:060d}" for i in range(size)]
        counts = rng.integers(1, 99, size).tolist()
        more = [[f"{(part + k) % parts:04d}{i:060d}" for k in range(1, n_images)] for i in range(size)]
        drawn = [
            {
                "item_id": key,
                "images": [key, *others],
                "places": [0] * n_images,
                "turns": [],
                "question": "How many circles are there?",
                "responses": [f"There are {count} circles.", f"I see {count + 1} circles in this picture."],
                "gold": [1.0, 0.0] if count < 5 else None,
            }
            for key, others, count in zip(keys, more, counts, strict=True)
        ]
        ingested.items.write(part, pa.Table.from_pylist(drawn, ITEMS))
        for table, names in ((ingested.images, keys), (ingested.borrowed, sorted({k for ks in more for k in ks}))):
            table.write(part, pa.Table.from_pylist([{"image_id": name} for name in names], IMAGES))
        texts = [
            {"image_id": key, "view": "default", "text": f"There are {count} red circles."}
            for key, count in zip(keys, counts, strict=True)
        ]
        captions.write(part, pa.Table.from_pylist(texts, CAPTIONS))
    return ingested, captions


class Peak:
    """The most bytes that the driver (resident) and Ray's object store (in use) have had, looked at twice a second."""

    def __init__(self) -> None:
        self.driver, self.store = 0, 0

    def look(self) -> None:
        """Looks once."""
        import ray
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        self.driver = max(self.driver, psutil.Process().memory_info().rss)
        stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
        self.store = max(self.store, stats.object_store_bytes_used)


@contextmanager
def peak() -> Iterator[Peak]:
    """Watches memory."""
    seen, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            seen.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seen
    ended.set()
    watcher.join()


def bookkeeping(settings: Settings, directory: Path, job: PoolJob, parts: int) -> float:
    """Seconds that fingerprints, commits, and the bookkeeping of rows and errors take for all parts, one after another.

    Every one of them is done again here, alone, with the rows of the run.
    """
    started = time.process_time()
    plan_run(settings, Run(directory / "none"))
    spent = time.process_time() - started
    again = Table(directory / "again")
    for part in range(parts):
        rows_in = {name: table.read(part) for name, table in job.sources.items()}
        rows = job.target.read(part)
        started = time.process_time()
        check_keys(job, rows_in, rows)
        failures(rows["error"])
        again.write(part, rows)
        spent += time.process_time() - started
    return spent


def engine_seconds(rows: int) -> float:
    """Processor seconds that a shipped expert takes for so many items with two views, from a sample."""
    [expert] = load_settings("mini").experts[:1]
    scorer = EXPERT_KINDS[expert.kind].load(expert)
    turns = [expert.write("There are 7 red circles.", "How many circles?"), "How many circles are there?"]
    sample = [(turn, ["There are 7 circles.", "I see 8 circles in this picture."]) for turn in turns * 128]
    scorer(sample[:16])
    started = time.process_time()
    scorer(sample)
    return (time.process_time() - started) / (len(sample) / 2) * rows


def million(directory: Path, arguments: argparse.Namespace) -> None:
    """`million_items`."""
    import torch

    n, parts = arguments.items, max(8, arguments.items // 12_500)
    ingested, captions = draw(directory, n, parts, arguments.images)
    n = n // parts * parts
    started = time.perf_counter()
    write_borrowed(ingested, captions)
    joined = time.perf_counter() - started
    words = ["router.policy=mean_margin", "router.threshold=0.6", "cluster.num_cpus=2"]
    settings = load_settings("mini", words)
    one = settings.experts[0].model_copy(update={"kind": "python", "path": "simulated:Instant"})
    settings = settings.model_copy(update={"experts": [one]})
    pool = Pool(num_cpus=1, concurrency=2, batch_size=256)
    borrowed = borrowed_captions(captions)
    sources = {"items": ingested.items, "captions": captions, "borrowed_captions": borrowed}
    target = Table(directory / "scores")
    job = PoolJob("score", InstantProcessor(one), sources, target, pool, "item_id", ("view",))
    with ray_cluster(settings.cluster), peak() as seen:
        started = time.perf_counter()
        run_jobs([job], range(parts), 0.0, lambda name, tally, n: None)
        scored = time.perf_counter()
        counts = route.run_route(settings, ingested.items, [target], Table(directory / "routes"))
        routed = time.perf_counter()
        seen.look()
    torch.set_num_threads(1)
    shipped = load_settings("mini")
    shipped = shipped.model_copy(update={"experts": shipped.experts[:1]})
    kept, engine = bookkeeping(shipped, directory, job, parts), engine_seconds(n)
    line = {"figure": "million_items", "value": round(n / (routed - started), 1), "unit": "items/s", "peer": None}
    gib = round((seen.driver + seen.store) / 2**30, 3)
    line |= {"ratio": None, "goal": None, "items": n, "parts": parts, "routed": counts["rows_out"]}
    line |= {"images": arguments.images, "join_items_per_s": round(n / joined, 1)}
    line |= {
        "score_items_per_s": round(n / (scored - started), 1),
        "route_items_per_s": round(n / (routed - scored), 1),
    }
    line |= {"driver_gib": round(seen.driver / 2**30, 3), "object_store_gib": round(seen.store / 2**30, 3)}
    line |= {"gib": gib, "gib_goal": 3.0, "bookkeeping_cpu_s": round(kept, 2), "engine_cpu_s": round(engine, 1)}
    tell(line | {"bookkeeping_share": round(kept / engine, 4), "bookkeeping_goal": 0.01})


FIGURES = {"scheduling_32": scheduling, "million_items": million}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=1, help="images of an item (million_items)")
    parser.add_argument("--wait", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    for name in arguments.figures:
        with tempfile.TemporaryDirectory() as directory:
            FIGURES[name](Path(directory), arguments)


if __name__ == "__main__":
    main()
