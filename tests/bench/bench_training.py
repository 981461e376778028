"""Training against TRL: pairs and targets per second, and peak memory, one worker each, in turns on the same rows.

    python tests/bench/bench_training.py [--sizes mini large] [--rounds 3]

`mini` is the shipped base judge on drawn pairs. `large` is a Qwen2.5-VL of about 100 million random weights on prompts
of 400 to 600 tokens with judgments of about 40. Both trainers take the same steps: same order, same batch, AdamW, all
weights but those of the vision tower. Each side is a process that keeps its libraries loaded; they take turns, and a
figure is the median of the rounds. Timed is what an epoch costs: reading images, steps, and in dpo the reference
(`dpo_ratio_cached` leaves out ours, as in a second epoch). Memory is what the process held at most beyond what it held
before it loaded a judge.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

GOALS = {"dpo_ratio": 1.8, "dpo_ratio_cached": 2.4, "sft_ratio": 1.5, "dpo_memory_ratio": 0.7}
SIZES = {"mini": (48, 8), "large": (8, 4)}
"""Rows and batch size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        answer_turns(arguments.side, arguments.directory, arguments.sizes[0])
        return
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as directory:
            make_rows(size, Path(directory))
            for line in compare(size, Path(directory), arguments.rounds):
                print(json.dumps(line), flush=True)


def compare(size: str, directory: Path, rounds: int) -> list[dict[str, Any]]:
    """The figures of one size."""
    suffix = "_mini" if size == "mini" else ""
    said: dict[tuple[str, str], list[dict[str, float]]] = {}
    for phase in ("sft", "dpo"):
        command = [sys.executable, __file__, "--sizes", size, "--directory", str(directory), "--side"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        sides = {side: subprocess.Popen([*command, side], **pipes) for side in ("ours", "trl")}
        for n in range(rounds):
            for side, process in sides.items() if n % 2 == 0 else reversed(sides.items()):
                print(phase, file=process.stdin, flush=True)
                line = next(line for line in process.stdout if line.startswith("{"))
                said.setdefault((phase, side), []).append(json.loads(line))
        for process in sides.values():
            process.stdin.close()
            process.wait()

    def figure(name: str, ours: float, theirs: float, unit: str) -> dict[str, Any]:
        values = {"value": round(ours, 3), "unit": unit, "peer": "trl", "ratio": round(ours / theirs, 3)}
        return {"figure": name + suffix, **values, "goal": GOALS[name]}

    def rate(phase: str, side: str, *parts: str) -> float:
        return statistics.median(turn["rows"] / sum(turn[part] for part in parts) for turn in said[phase, side])

    def memory(side: str) -> float:
        return max(turn["bytes"] for turn in said["dpo", side]) / 2**20

    theirs = rate("dpo", "trl", "epoch")
    return [
        figure("sft_ratio", rate("sft", "ours", "epoch"), rate("sft", "trl", "epoch"), "targets/s"),
        figure("dpo_ratio", rate("dpo", "ours", "reference", "epoch"), theirs, "pairs/s"),
        figure("dpo_ratio_cached", rate("dpo", "ours", "epoch"), theirs, "pairs/s"),
        figure("dpo_memory_ratio", memory("ours"), memory("trl"), "MiB"),
    ]


def answer_turns(side: str, directory: Path, size: str) -> None:
    """Trains an epoch for every phase that is asked for on standard input; the first turn warms up unseen."""
    import deepspeed
    import trl_peer  # noqa: F401  both sides hold the same libraries

    from carevl.training.settings import Training

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    deepspeed.init_distributed(dist_backend="gloo")
    training = Training(
        lora=None,
        learning_rate=1e-5,
        schedule="constant",
        warmup=0.0,
        batch_size=SIZES[size][1],
        dpo={"nll_weight": 0.0},
    )
    judge = json.loads((directory / "judge.json").read_text())
    turn = ours if side == "ours" else theirs
    before = _peak()
    for n, phase in enumerate(line.strip() for line in sys.stdin):
        if n == 0:
            turn(phase, directory, Path(judge), training)
        facts = turn(phase, directory, Path(judge), training)
        print(json.dumps({"rows": SIZES[size][0], **facts, "bytes": _peak() - before}), flush=True)


def ours(phase: Any, directory: Path, judge: Path, training: Any) -> dict[str, float]:
    """Seconds of the reference pass and of an epoch."""
    from carevl.training.loop import Loop
    from carevl.training.reference import Reference
    from carevl.training.train import assign

    file, seconds = directory / f"{phase}.parquet", 0.0
    if phase == "dpo":
        reference = Reference(judge, training)
        started = time.monotonic()
        rows = reference(pq.read_table(file))
        seconds = time.monotonic() - started
        del reference
        file = directory / "referred.parquet"
        pq.write_table(rows, file)
    with tempfile.TemporaryDirectory() as out:
        assignment, _, _ = assign(phase, [file], judge, Path(out), training)
        loop = Loop(assignment, 0, 1)
        started = time.monotonic()
        for step in range(assignment.schedule.steps):
            loop.step(step)
        epoch = time.monotonic() - started
        loop.engine.destroy()
    return {"reference": seconds, "epoch": epoch}


def theirs(phase: Any, directory: Path, judge: Path, training: Any) -> dict[str, float]:
    """Seconds of an epoch."""
    import trl_peer

    from carevl.training.schedule import Schedule

    rows = pq.read_table(directory / f"{phase}.parquet")
    schedule = Schedule(rows.num_rows, training.batch_size, 1, training.seed)
    order = [i for step in range(schedule.steps) for i in schedule.step(step)]
    with tempfile.TemporaryDirectory() as out:
        trainer = trl_peer.make_trainer(phase, rows, order, judge, Path(out), training)
        started = time.monotonic()
        trainer.train()
        return {"epoch": time.monotonic() - started}


def make_rows(size: str, directory: Path) -> None:
    """Writes `sft.parquet`, `dpo.parquet` and `judge.json`, the judge's directory."""
    from carevl.inference.engines import locate
    from carevl.judging.prompts import judge_prompt, write_judgment
    from carevl.miniworld.items import draw_items

    judge = Path(locate("miniworld:judge")) if size == "mini" else make_large(directory / "judge")
    (directory / "judge.json").write_text(json.dumps(str(judge.resolve())))
    rng, rows = random.Random(0), []
    for n, (drawn, items) in enumerate(itertools.islice(draw_items("test", "bench"), SIZES[size][0])):
        question, responses = items[0].question, [response.text for response in items[0].responses[:2]]
        evidence, picture = question.evidence, drawn
        if size == "large":
            picture = drawn.resize((224, 224))
            responses = [" ".join([text, *_words(rng, rng.randint(120, 190))]) for text in responses]
            evidence = " ".join([evidence, *_words(rng, 16)])
        data = io.BytesIO()
        Image.Image.save(picture, data, "PNG")
        judgments = [write_judgment(evidence, winner=1 + (n + k) % 2) for k in range(2)]
        prompt = judge_prompt("pairwise", question.text, responses)
        rows.append({"item_id": str(n), "image": data.getvalue(), "prompt": prompt, "texts": judgments})
    common = [{name: row[name] for name in ("item_id", "image", "prompt")} for row in rows]
    targets = [row | {"target": full["texts"][0]} for row, full in zip(common, rows, strict=True)]
    sides = [dict(zip(("chosen", "rejected"), row["texts"], strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(targets), directory / "sft.parquet")
    pairs = [row | side for row, side in zip(common, sides, strict=True)]
    pq.write_table(pa.Table.from_pylist(pairs), directory / "dpo.parquet")


def _words(rng: random.Random, n: int) -> list[str]:
    return rng.choices(["red", "circle", "left", "of", "the", "two", "blue", "squares", "above", "there"], k=n)


def make_large(directory: Path) -> Path:
    """A Qwen2.5-VL of about 100 million random weights; an image of 224 x 224 pixels has 64 tokens."""
    import torch
    import transformers as hf

    from carevl.miniworld.models import make_processor, make_tokenizer

    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    pixels = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}
    processor.image_processor = hf.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size=pixels)
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 640,
            "intermediate_size": 2560,
            "num_hidden_layers": 12,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 8,
            "num_heads": 8,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "out_hidden_size": 640,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [3, 7],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    torch.manual_seed(0)
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
