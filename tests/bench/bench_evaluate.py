"""Strict evaluation of the shipped judge against the loop that the official scripts use: one prompt at a time.

    python tests/bench/bench_evaluate.py [--pairs 96] [--engine vllm] [--threads 2]

Both judge the same pairs of miniworld in both orders, with the same prompts and token cap, greedily. The peer calls
`generate` of transformers once per prompt, with no log-probabilities. The engine is by default the one that the preset
`mini` judges with, and each side has one thread: with more, every operation on so small a model waits for the slower
one, and on a machine whose cores others use the figure tells of them. Each side is a process of its own with the same
number of threads, because vLLM binds the threads of its process to cores. They take turns, block by block, both loaded
and warmed up before; seconds are of judging alone, decoding of the images and reading of the verdicts included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.questions import Question
from carevl.benchmarks.run import PART_QUESTIONS
from carevl.benchmarks.suites import SUITES
from carevl.data.images import ImageLimits, decode_rgb
from carevl.miniworld.publish import publish
from carevl.models.locate import locate
from carevl.models.prompts import Prompt, render_prompt
from carevl.settings.models import Judge

BENCHMARK = SUITES["vl-rewardbench"]
MODEL, MAX_TOKENS, BLOCK = "miniworld:judge", 80, PART_QUESTIONS


class OneByOne:
    """The peer: a plain loop over prompts."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(locate(MODEL))
        self.model: Any = AutoModelForImageTextToText.from_pretrained(locate(MODEL)).eval()

    def judge(self, questions: Sequence[Question], images: dict[str, bytes]) -> list[str]:
        import torch

        pictures = {name: decode_rgb(data, ImageLimits()) for name, data in images.items()}
        texts = []
        for question in questions:
            prompt = render_prompt(self.processor, Prompt(question.prompt))
            inputs = self.processor(text=[prompt], images=[[pictures[question.images[0].name]]], return_tensors="pt")
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
            made = output[:, inputs["input_ids"].shape[1] :]
            texts += self.processor.batch_decode(made, skip_special_tokens=True)
        for question, text in zip(questions, texts, strict=True):
            BENCHMARK.parse(question, text)
        return texts


class Ours:
    """The product: batches in an engine."""

    def __init__(self, engine: str) -> None:
        self.judges = EngineJudge(Judge(path=MODEL, engine=engine, max_tokens=MAX_TOKENS, max_model_len=512))

    def judge(self, questions: Sequence[Question], images: dict[str, bytes]) -> list[str]:
        pictures = {name: decode_rgb(data, ImageLimits()) for name, data in images.items()}
        return [
            each.text for each in judge_questions(self.judges, "ours", BENCHMARK, questions, pictures, 0, max_images=8)
        ]


@cache
def side(name: str, engine: str) -> Ours | OneByOne:
    """One of the two, loaded once in its process."""
    return Ours(engine) if name == "ours" else OneByOne()


def judged(
    name: str, engine: str, questions: Sequence[Question], images: dict[str, bytes]
) -> tuple[float, float, list[str]]:
    """Wall seconds, CPU seconds of the process, and the texts."""
    one = side(name, engine)
    began, worked = time.perf_counter(), time.process_time()
    texts = one.judge(questions, images)
    return time.perf_counter() - began, time.process_time() - worked, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each side.")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{arguments.threads - 1}"
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder, "world"), 8, seed=7, calibration_images=4)
        rows = BENCHMARK.load(Path(folder, "world/dev/vl_rewardbench.parquet"))[: arguments.pairs]
    questions = list(BENCHMARK.questions(rows, "strict"))
    images = {image.name: image.read() for row in rows for image in row.images}
    spawn = multiprocessing.get_context("spawn")
    sides: dict[str, Executor] = {name: ProcessPoolExecutor(1, spawn) for name in ("ours", "peer")}
    seconds, worked = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    equal = 0
    for start in (-1, *range(0, len(questions), BLOCK)):
        block = questions[:4] if start < 0 else questions[start : start + BLOCK]
        shown = {image.name: images[image.name] for question in block for image in question.images}
        made = {
            name: executor.submit(judged, name, arguments.engine, block, shown).result()
            for name, executor in sides.items()
        }
        if start >= 0:
            for name, (wall, cpu, _) in made.items():
                seconds[name] += wall
                worked[name] += cpu
            equal += sum(a == b for a, b in zip(made["ours"][2], made["peer"][2], strict=True))
    for executor in sides.values():
        executor.shutdown()
    rates = {name: len(rows) / spent for name, spent in seconds.items()}
    line = {
        "figure": "evaluate_strict_ratio",
        "value": round(rates["ours"], 2),
        "unit": "pairs/s",
        "peer": round(rates["peer"], 2),
        "ratio": round(rates["ours"] / rates["peer"], 2),
        "goal": 5,
        "engine": arguments.engine,
        "threads": arguments.threads,
        "pairs": len(rows),
        "equal_texts": round(equal / len(questions), 4),
        "ratio_of_cpu_seconds": round(worked["peer"] / worked["ours"], 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
