"""The shipped judge and expert, whose weights attend to something: a GPU against the CPU."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pyarrow as pa
import torch

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.miniworld.items import draw_items
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.flex_attention import FLEX
from carevl.models.judge_files import load_processor
from carevl.models.reward_scorer import RewardScorer
from carevl.models.tree_attention import TREES, set_attention
from carevl.training.encoder import Encoder
from carevl.training.items import Items
from carevl.training.judge import load_judge, log_probabilities
from tests.gpu.figures import Check, relative

_BOUNDS = {"float32": (2e-3, 2e-2), "bfloat16": (0.5, 0.15)}
"""Most nats between log-probabilities, and most of a gradient's largest number."""


def run(check: Check) -> None:
    """Write how far log-probabilities, gradients, scores and texts are from those of the CPU."""
    _compare_training(check)
    _compare_scores(check)
    _compare_texts(check)


def training_rows(count: int) -> pa.Table:
    """Return drawn pairs with a right and a wrong judgment, as phase 2 trains on them."""
    rows = []
    for n, (image, items) in enumerate(itertools.islice(draw_items("test", "gpu"), count)):
        question, data = items[0].question, io.BytesIO()
        image.save(data, "PNG")
        texts = [response.text for response in items[0].responses[:2]]
        rows.append(
            {
                "item_id": str(n),
                "image": data.getvalue(),
                "prompt": judge_prompt("pairwise", question.text, texts),
                "chosen": write_judgment(question.evidence, winner=1 + n % 2),
                "rejected": write_judgment(question.evidence, winner=2 - n % 2),
            }
        )
    return pa.Table.from_pylist(rows)


def _compare_training(check: Check) -> None:
    judge, rows = WEIGHTS / "judge", training_rows(8)
    processor, expected = load_processor(judge), None
    for device, dtype, kind in [
        ("cpu", "float32", TREES),
        *((check.device, dtype, kind) for dtype in _BOUNDS for kind in ([FLEX, TREES] if check.on_gpu else [TREES])),
    ]:
        model = load_judge(judge, dtype).to(device)
        set_attention(model, kind)
        encoded, images, _ = Encoder(processor, 8192).encode(rows, "dpo")
        packed = Items.of(encoded, images).collate(range(8), processor, model, "shared").to(device)
        values = log_probabilities(model, packed)
        weights = [weight for name, weight in model.named_parameters() if "layers" in name and "visual" not in name]
        values_of_pairs = values.view(-1, 2)
        gradients = torch.autograd.grad((values_of_pairs[:, 0] - values_of_pairs[:, 1]).sum(), weights)
        flat = torch.cat([gradient.flatten().float().cpu() for gradient in gradients])
        if expected is None:
            expected = values.detach(), flat
            continue
        nats, share = _BOUNDS[dtype]
        facts = {"dtype": dtype, "attention": kind}
        off = float((values.detach().cpu() - expected[0]).abs().max())
        check.figure("judge_nats_from_cpu", off, most=nats, **facts)
        check.figure("judge_gradient_from_cpu", relative(flat, expected[1]), most=share, **facts)


def _compare_scores(check: Check) -> None:
    texts = [(f"Image: {n} red circles.\nHow many circles are there?", f"There are {n % 3}.") for n in range(24)]
    scorer = RewardScorer(WEIGHTS / "expert-llama")
    scores = torch.tensor(scorer.score(texts))
    scorer.model.to("cpu")
    expected = torch.tensor(scorer.score(texts))
    check.figure("expert_scores_from_cpu", relative(scores, expected), most=1e-3, attention=_attention(scorer.model))


def _attention(model: Any) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def _compare_texts(check: Check) -> None:
    judge = ImageTextGenerator(WEIGHTS / "judge", "float32")
    drawn = itertools.islice(draw_items("test", "gpu-texts"), 16)
    requests = [
        GenerationRequest((image,), judge_prompt("pairwise", items[0].question.text, ["Two.", "Three."]), seed=n)
        for n, (image, items) in enumerate(drawn)
    ]
    for temperature in (0.0, 1.0):
        texts = judge.generate(requests, max_tokens=48, temperature=temperature)
        judge.model.to(check.device)
        device = judge.device
        judge.device = "cpu"
        judge.model.to("cpu")
        expected = judge.generate(requests, max_tokens=48, temperature=temperature)
        judge.device = device
        judge.model.to(device)
        other = sum(a.text != b.text for a, b in zip(texts, expected, strict=True)) / len(texts)
        check.figure("judge_texts_not_as_on_cpu", other, most=0.25, temperature=temperature, texts=len(texts))
