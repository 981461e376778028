"""Strict evaluation of the shipped judge against the loop that the official scripts use: one prompt at a time.

    python tests/bench/bench_evaluate.py [--pairs 96] [--engine vllm]

Both judge the same pairs of miniworld in both orders, with the same prompts and token cap, greedily. The peer calls
`generate` of transformers once per prompt, with no log-probabilities. They take turns, block by block, both loaded and
warmed up before; seconds are of judging alone, decoding of the images and reading of the verdicts included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from carevl.benchmarks import BENCHMARKS
from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.asking import Question
from carevl.config import Judge
from carevl.inference.engines import locate
from carevl.inference.transformers_engine import chat_prompt
from carevl.miniworld.publish import publish
from carevl.sources.images import ImageLimits, decode_rgb

BENCHMARK = BENCHMARKS["vl-rewardbench"]
MODEL, MAX_TOKENS, BLOCK = "miniworld:judge", 80, 128


class OneByOne:
    """The peer: a plain loop over prompts."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(locate(MODEL))
        self.model: Any = AutoModelForImageTextToText.from_pretrained(locate(MODEL)).eval()

    def judge(self, questions: Sequence[Question], pictures: dict[str, Image]) -> list[str]:
        import torch

        texts = []
        for question in questions:
            prompt = chat_prompt(self.processor, question.prompt)
            inputs = self.processor(text=[prompt], images=[[pictures[question.image.name]]], return_tensors="pt")
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
            made = output[:, inputs["input_ids"].shape[1] :]
            texts += self.processor.batch_decode(made, skip_special_tokens=True)
        for question, text in zip(questions, texts, strict=True):
            BENCHMARK.parse(question, text)
        return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder, "world"), 8, seed=7, calibration_images=4)
        rows = BENCHMARK.load(Path(folder, "world/dev/vl_rewardbench.parquet"))[: arguments.pairs]
    questions = list(BENCHMARK.questions(rows, "strict"))
    images = {row.image.name: row.image.read() for row in rows}
    ours = EngineJudge(Judge(path=MODEL, engine=arguments.engine, max_tokens=MAX_TOKENS, max_model_len=512))
    peer = OneByOne()
    seconds = {"ours": 0.0, "peer": 0.0}
    equal = 0
    for start in (-1, *range(0, len(questions), BLOCK)):
        block = questions[:4] if start < 0 else questions[start : start + BLOCK]
        began = time.perf_counter()
        pictures = {q.image.name: decode_rgb(images[q.image.name], ImageLimits()) for q in block}
        judged = judge_questions(ours, "ours", BENCHMARK, block, pictures, 0)
        middle = time.perf_counter()
        pictures = {q.image.name: decode_rgb(images[q.image.name], ImageLimits()) for q in block}
        texts = peer.judge(block, pictures)
        if start >= 0:
            seconds["ours"] += middle - began
            seconds["peer"] += time.perf_counter() - middle
            equal += sum(each.text == text for each, text in zip(judged, texts, strict=True))
    rates = {name: len(rows) / spent for name, spent in seconds.items()}
    line = {
        "figure": "evaluate_strict_ratio",
        "value": round(rates["ours"], 2),
        "unit": "pairs/s",
        "peer": round(rates["peer"], 2),
        "ratio": round(rates["ours"] / rates["peer"], 2),
        "goal": 5,
        "engine": arguments.engine,
        "pairs": len(rows),
        "equal_texts": round(equal / len(questions), 4),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
