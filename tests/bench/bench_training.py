"""Training against TRL: pairs and targets per second, and peak memory, one worker each, in turns on the same rows.

    python tests/bench/bench_training.py [--sizes mini large large-qwen3 large-internvl] [--phases sft sft_single dpo]
        [--rounds 2] [--threads 2] [--prompts N]

`mini` is the shipped base judge on drawn pairs. `large` is a Qwen2.5-VL of about 100 million random weights on prompts
of 400 to 600 tokens with judgments of about 40; `large-qwen3` and `large-internvl` are a Qwen3-VL and an InternVL of
that size on the same rows. Both trainers take the same steps: same order, same batch, fused AdamW,
all weights but those of the vision tower. In sft every prompt has two targets; `sft_single_ratio` is with one, where
nothing can be shared. Each side is a process that keeps its libraries loaded; they take turns, and a rate is that of
the fastest round; `cpu_ratio` compares the processor seconds of the same rounds. Timed is what an epoch costs: reading
images, steps, and in dpo the reference (`dpo_ratio_cached` leaves out ours, as in a second epoch). Memory is what the
process held at most beyond what it held before it loaded a judge.
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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import carevl  # noqa: F401  before transformers: it declares what torchvision may lack

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for what tests and benchmarks share

GOALS = {"dpo_ratio": 1.8, "dpo_ratio_cached": 2.4, "sft_ratio": 1.5, "dpo_memory_ratio": 0.7}
PEER = "trl 1.16.0"
PHASES = {"sft": 2, "sft_single": 1, "dpo": 1}
"""What is trained, and rows of a prompt."""
SIZES = {"mini": (48, 8), **dict.fromkeys(("large", "large-qwen3", "large-internvl"), (8, 4))}
"""Prompts, and those of a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, help="those of an epoch, instead of the size's own number")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        answer_turns(arguments.side, arguments.directory, arguments.sizes[0], arguments.threads)
        return
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as directory:
            make_rows(size, Path(directory), arguments.prompts or SIZES[size][0])
            for phase in arguments.phases:
                for line in compare(size, phase, Path(directory), arguments.rounds, arguments.threads):
                    print(json.dumps(line), flush=True)


Turn = dict[str, float]
"""What a side says of an epoch: rows, useful tokens, bytes, and wall and processor seconds of its parts."""


def compare(size: str, phase: str, directory: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """The figures of one size and phase."""
    command = [sys.executable, __file__, "--sizes", size, "--directory", str(directory), "--threads", str(threads)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {side: subprocess.Popen([*command, "--side", side], **pipes) for side in ("ours", "trl")}
    said: dict[str, list[Turn]] = {side: [] for side in sides}
    for n in range(rounds):
        for side, process in sides.items() if n % 2 == 0 else reversed(sides.items()):
            print(phase, file=process.stdin, flush=True)
            line = next((line for line in process.stdout if line.startswith('{"')), None)
            if line is None:
                raise SystemExit(f"{side} ended without an answer; its error stands above")
            said[side].append(json.loads(line))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return figures(phase, said, "" if size == "large" else f"_{size.removeprefix('large-')}")


def figures(phase: str, said: dict[str, list[Turn]], suffix: str) -> list[dict[str, Any]]:
    """A line per figure of `GOALS`, and for `sft_single`."""

    def fastest(side: str, *parts: str) -> tuple[Turn, float, float]:
        def seconds(turn: Turn, prefix: str = "") -> float:
            return sum(turn[prefix + part] for part in parts)

        turn = min(said[side], key=seconds)
        return turn, seconds(turn), seconds(turn, "cpu_")

    def speed(name: str, *parts: str) -> dict[str, Any]:
        (mine, seconds, cpu), (_, their_seconds, their_cpu) = fastest("ours", *parts), fastest("trl", "epoch")
        return {
            "figure": name + suffix,
            "value": round(mine["rows"] / seconds, 3),
            "unit": "pairs/s" if phase == "dpo" else "targets/s",
            "peer": PEER,
            "ratio": round(their_seconds / seconds, 3),
            "goal": GOALS.get(name),
            "cpu_ratio": round(their_cpu / cpu, 3),
            "useful_tokens_per_second": round(mine["tokens"] / seconds),
        }

    if phase != "dpo":
        return [speed(f"{phase}_ratio", "epoch")]
    held, theirs = (max(turn["bytes"] for turn in said[side]) / 2**20 for side in ("ours", "trl"))
    memory = {"figure": f"dpo_memory_ratio{suffix}", "value": round(held), "unit": "MiB", "peer": PEER}
    return [
        speed("dpo_ratio", "reference", "epoch"),
        speed("dpo_ratio_cached", "epoch"),
        memory | {"ratio": round(held / theirs, 3), "goal": GOALS["dpo_memory_ratio"]},
    ]


def answer_turns(side: str, directory: Path, size: str, threads: int) -> None:
    """Trains an epoch for every phase that is asked for on standard input."""
    import torch

    from carevl.settings.training import Training
    from tests.training import trl_peer  # noqa: F401  both sides hold the same libraries

    torch.set_num_threads(threads)
    if side == "ours":
        start_alone()
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
    before = peak()
    for phase in (line.strip() for line in sys.stdin):
        facts = turn(phase, directory, Path(judge), training)
        rows = pq.ParquetFile(directory / f"{phase}.parquet").metadata.num_rows
        print(json.dumps({**facts, "rows": rows, "bytes": peak() - before}), flush=True)


def start_alone() -> None:
    """A process group of this process; under one, TRL would wrap its model for several workers."""
    from carevl.training.worker import join_workers

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    join_workers("gloo")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Clock:
    """Wall and processor seconds of a part of a turn."""

    def __init__(self, part: str) -> None:
        self.part, self.began = part, (time.monotonic(), time.process_time())

    def stop(self) -> Turn:
        return {
            self.part: time.monotonic() - self.began[0],
            f"cpu_{self.part}": time.process_time() - self.began[1],
        }


def ours(phase: str, directory: Path, judge: Path, training: Any) -> Turn:
    """The reference pass, in dpo, and an epoch."""
    from carevl.training.driver import prepare_training
    from carevl.training.loop import Loop
    from carevl.training.reference import Reference

    file, facts = directory / f"{phase}.parquet", {}
    if phase == "dpo":
        reference = Reference(judge, training)
        clock = Clock("reference")
        rows = reference(pq.read_table(file))
        facts = clock.stop()
        del reference
        file = directory / "referred.parquet"
        pq.write_table(rows, file)
    with tempfile.TemporaryDirectory() as out:
        config, _, _ = prepare_training("dpo" if phase == "dpo" else "sft", [file], judge, Path(out), training)
        loop = Loop(config, 0, 1)
        clock = Clock("epoch")
        tokens = sum(loop.step(step)["tokens"] for step in range(config.schedule.steps))
        facts |= clock.stop()
        loop.engine.destroy()
    return {**facts, "tokens": tokens}


def theirs(phase: str, directory: Path, judge: Path, training: Any) -> Turn:
    """An epoch, the reference in it."""
    from carevl.training.schedule import Schedule
    from tests.training import trl_peer

    rows, each = pq.read_table(directory / f"{phase}.parquet"), PHASES[phase]
    schedule = Schedule(rows.num_rows // each, training.batch_size, 1, training.seed)
    order = [each * i + k for step in range(schedule.steps) for i in schedule.step(step) for k in range(each)]
    kind = "dpo" if phase == "dpo" else "sft"
    with tempfile.TemporaryDirectory() as out:
        batch = {"per_device_train_batch_size": training.batch_size * each}
        trainer = trl_peer.make_trainer(kind, rows, order, judge, Path(out), training, **batch)
        clock = Clock("epoch")
        trainer.train()
        return clock.stop()


def make_rows(size: str, directory: Path, prompts: int) -> None:
    """Writes rows for each of `PHASES`, and `judge.json`, the judge's directory."""
    from carevl.judging.prompts import judge_prompt, write_judgment
    from carevl.miniworld.items import draw_items
    from carevl.models.locate import locate

    judge = Path(locate("miniworld:judge")) if size == "mini" else MAKERS[size](directory / "judge")
    (directory / "judge.json").write_text(json.dumps(str(judge.resolve())))
    rng, rows = random.Random(0), []
    for n, (drawn, items) in enumerate(itertools.islice(draw_items("test", "bench"), prompts)):
        question, responses = items[0].question, [response.text for response in items[0].responses[:2]]
        evidence, picture = question.evidence, drawn
        if size != "mini":
            picture = drawn.resize((224, 224))
            responses = [" ".join([text, *_words(rng, rng.randint(120, 190))]) for text in responses]
            evidence = " ".join([evidence, *_words(rng, 16)])
        data = io.BytesIO()
        Image.Image.save(picture, data, "PNG")
        judgments = [write_judgment(evidence, winner=1 + (n + k) % 2) for k in range(2)]
        prompt = judge_prompt("pairwise", question.text, responses)
        rows.append({"item_id": str(n), "image": data.getvalue(), "prompt": prompt, "texts": judgments})
    common = [{name: row[name] for name in ("item_id", "image", "prompt")} for row in rows]
    for phase in ("sft", "sft_single"):
        targets = [
            row | {"target": text}
            for row, full in zip(common, rows, strict=True)
            for text in full["texts"][: PHASES[phase]]
        ]
        pq.write_table(pa.Table.from_pylist(targets), directory / f"{phase}.parquet")
    sides = [dict(zip(("chosen", "rejected"), row["texts"], strict=True)) for row in rows]
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
    config = hf.Qwen2_5_VLConfig(
        text_config=_language(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}},
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
        **_image_tokens(tokenizer),
    )
    torch.manual_seed(0)
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def make_large_qwen3(directory: Path) -> Path:
    """A Qwen3-VL of that size; an image of 224 x 224 pixels has 49 tokens."""
    import torch
    import transformers as hf

    from carevl.miniworld.models import make_tokenizer
    from tests.helpers.families.chats import chatml

    tokenizer = make_tokenizer()
    pixels = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, size=pixels),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(patch_size=16),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(
        text_config=_language(tokenizer) | {"head_dim": 64, "rope_parameters": rope},
        vision_config={
            "depth": 8,
            "num_heads": 8,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "out_hidden_size": 640,
            "patch_size": 16,
            "num_position_embeddings": 196,
            "deepstack_visual_indexes": [1, 3, 5],
        },
        **_image_tokens(tokenizer),
    )
    torch.manual_seed(0)
    hf.Qwen3VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def make_large_internvl(directory: Path) -> Path:
    """An InternVL of that size; an image of 224 x 224 pixels is one tile of 64 tokens."""
    import torch
    import transformers as hf

    from tests.helpers.families.chats import chatml
    from tests.helpers.families.tokenizer import make_tokenizer

    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = make_tokenizer(["<|im_start|>"], named=named)
    side = {"height": 224, "width": 224}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, min_patches=1, max_patches=12),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=side),
        image_seq_length=64,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        text_config=_language(tokenizer) | {"model_type": "qwen2"},
        vision_config={
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "image_size": [224, 224],
            "patch_size": [14, 14],
        },
        image_seq_length=64,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    torch.manual_seed(0)
    hf.InternVLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


MAKERS = {"large": make_large, "large-qwen3": make_large_qwen3, "large-internvl": make_large_internvl}
"""What writes the judge of a size."""


def _language(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _image_tokens(tokenizer: Any) -> dict[str, int]:
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    return {f"{field}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for field, name in names.items()}


def peak() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
