"""Routes 10 million pairs, from Arrow batches of items and scores to Arrow batches of routes, on one process.

    python tests/bench/bench_routing.py [--pairs 10000000] [--policy mean_margin]

Prints one JSON line per figure. Seconds are those spent in the router, joining items and scores included and drawing
the data left out; bytes are the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import pyarrow as pa

from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.settings.router import RouterSettings

EXPERTS = ("llama", "qwen2", "mistral")
VIEWS = ("dense",)
BLOCK = 1 << 17
TEXTS = pa.array([f"There are {n} {colour} shapes in it." for n in range(30) for colour in ("red", "green", "blue")])


def draw_ids(rng: np.random.Generator, n: int) -> pa.Array:
    """n distinct strings of 32 hexadecimal digits."""
    offsets = pa.py_buffer(np.arange(0, 32 * n + 1, 32, dtype=np.int32))
    return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(rng.bytes(16 * n).hex().encode()))


def lists(values: pa.Array) -> pa.Array:
    """Values two by two."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, 2, dtype=np.int32)), values)


def one_by_one(values: pa.Array) -> pa.Array:
    """Values one by one."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)


def draw_block(rng: np.random.Generator, n: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """n items of two responses, and their scores by every expert with and without a caption."""
    ids = draw_ids(rng, n)
    responses = lists(TEXTS.take(pa.array(rng.integers(len(TEXTS), size=2 * n))))
    source = lists(pa.array(rng.random(2 * n, dtype=np.float32)))
    items = pa.record_batch(
        {"item_id": ids, "images": one_by_one(draw_ids(rng, n)), "responses": responses, "source_preference": source}
    )
    views = (*VIEWS, "none")
    repeats = len(EXPERTS) * len(views)
    scores = pa.record_batch(
        {
            "item_id": pa.concat_arrays([ids] * repeats),
            "expert": pa.array(np.repeat(np.array(EXPERTS, dtype=object), n * len(views))),
            "view": pa.array(np.tile(np.repeat(np.array(views, dtype=object), n), len(EXPERTS))),
            "scores": lists(pa.array(rng.standard_normal(2 * n * repeats, dtype=np.float32))),
        }
    )
    return items, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--policy", choices=("unanimous", "mean_margin", "label_model"), default="mean_margin")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    settings = RouterSettings(policy=arguments.policy, text_only_limit=0.4)
    router = fit_router(settings, None, Pairs.from_arrow(*draw_block(rng, BLOCK), EXPERTS, VIEWS))
    seconds, cpu_seconds, routed = 0.0, 0.0, 0
    while routed < arguments.pairs:
        block = draw_block(rng, min(BLOCK, arguments.pairs - routed))
        start, cpu_start = time.perf_counter(), time.process_time()
        routed += sum(len(batch) for batch in router.route_stream([block]))
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run = {"policy": arguments.policy, "pairs": routed, "cpu_seconds": round(cpu_seconds, 2)}
    for figure, value, unit, goal in (
        ("routing_10m_seconds", round(seconds * 1e7 / routed, 2), "s per 10 million pairs", 60),
        ("routing_10m_peak_bytes", peak, "bytes", 2 << 30),
    ):
        line = {"figure": figure, "value": value, "unit": unit, "peer": None, "ratio": None, "goal": goal}
        print(json.dumps(line | run))


if __name__ == "__main__":
    main()
