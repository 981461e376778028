"""A tiny judge with random weights, and rows of drawn items."""

from __future__ import annotations

import io
import itertools
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.miniworld.items import draw_items
from carevl.settings.training import Lora, Phase, Training
from carevl.training.driver import prepare_training
from carevl.training.loop import Loop


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from carevl.miniworld.models import make_processor, make_tokenizer, make_vlm

    directory = tmp_path_factory.mktemp("judge")
    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    make_vlm(tokenizer).save_pretrained(directory)
    make_processor(tokenizer).save_pretrained(directory)
    return directory


def _image(image: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def sft_rows() -> pa.Table:
    """Eight drawn pairs with the right judgment."""
    rows = []
    for n, (image, items) in enumerate(itertools.islice(draw_items("test", "training"), 8)):
        question, responses = items[0].question, items[0].responses
        rows.append(
            {
                "item_id": f"item-{n}",
                "image": _image(image),
                "prompt": judge_prompt("pairwise", question.text, [response.text for response in responses[:2]]),
                "target": write_judgment(question.evidence, winner=1 + n % 2),
            }
        )
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="session")
def dpo_rows(sft_rows: pa.Table) -> pa.Table:
    """The same with a wrong judgment to reject."""
    chosen = sft_rows["target"].to_pylist()
    swapped = {"1": "2", "2": "1"}
    rejected = [
        text.replace(f"Answer {n}", f"Answer {swapped[n]}") for text in chosen for n in "12" if f"r {n}" in text
    ]
    return sft_rows.rename_columns({"target": "chosen"}).append_column("rejected", pa.array(rejected))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a parquet file."""

    def write_rows(rows: pa.Table, name: str = "rows") -> Path:
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    return write_rows


@pytest.fixture
def quick() -> Callable[..., Training]:
    """Settings for eight rows: two steps an epoch, a checkpoint every second step."""

    def make(**changes: Any) -> Training:
        values = {
            "learning_rate": 3e-3,
            "schedule": "constant",
            "warmup": 0.0,
            "batch_size": 4,
            "batch_tokens": 600,
            "lora": Lora(rank=16, alpha=32, targets=["q_proj", "v_proj", "down_proj"]),
            "checkpoint_steps": 2,
            "workers": {"num_cpus": 0.5},
        }
        return Training.model_validate(values | changes)

    return make


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def free_port() -> Callable[[], str]:
    return _free_port


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """This process as the only worker."""
    import torch.distributed as dist

    from carevl.training.worker import join_workers

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in alone.items():
            patch.setenv(name, value)
        join_workers("gloo")
        yield
        if dist.is_initialized():  # an engine of vLLM that ended in this process took the group with it
            dist.destroy_process_group()


@pytest.fixture
def begin(
    process_group: None, judge: Path, write: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Loop, list[dict[str, Any]]]]:
    """The training of rows in this process, and the rows that it left out."""

    def make(phase: Phase, rows: pa.Table, training: Training, **options: Any) -> tuple[Loop, list[dict[str, Any]]]:
        options = {"judge": judge, "out": tmp_path / "out"} | options
        config, _, errors = prepare_training(phase, [write(rows)], training=training, **options)
        return Loop(config, 0, 1), errors

    return make


@pytest.fixture
def break_judge() -> Callable[..., tuple[Path, int]]:
    return _break_judge


def _break_judge(judge: Path, rows: pa.Table, directory: Path) -> tuple[Path, int]:
    """A copy of the judge with no number for a token that one row alone has; (directory, that row)."""
    import transformers as hf

    processor = hf.AutoProcessor.from_pretrained(judge)
    model = hf.AutoModelForImageTextToText.from_pretrained(judge)
    texts = rows["prompt"].to_pylist()
    sets = [set(processor.tokenizer(text)["input_ids"]) for text in texts]
    targets = set().union(*(processor.tokenizer(text)["input_ids"] for text in rows["target"].to_pylist()))
    number, token = next(
        (n, token)
        for n, mine in enumerate(sets)
        for token in sorted(mine - targets)
        if not any(token in other for k, other in enumerate(sets) if k != n)
    )
    model.get_input_embeddings().weight.data[token] = math.nan
    model.get_output_embeddings().weight.data.nan_to_num_(0.0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory, number
