"""The noise that texts are sampled with: milliseconds per step over Qwen's vocabulary."""

from __future__ import annotations

import torch

from carevl.models.decoding import Texts
from carevl.models.noise import exponential_noise
from tests.gpu.figures import Check


def run(check: Check) -> None:
    """Write what a step of 1 and of 64 texts takes."""
    vocabulary = 1024 if check.small else 152064
    for rows in (1, 64):
        texts = Texts(range(rows), range(rows), 1.0, 1.0, [])
        logits = torch.randn(rows, vocabulary, device=check.device)
        ids = torch.zeros(rows, 4, dtype=torch.long, device=check.device)
        seconds = check.seconds(lambda: texts.draw(range(rows), ids, logits))  # noqa: B023
        check.figure("noise_ms", 1e3 * seconds, rows=rows, vocabulary=vocabulary)
    here = exponential_noise([1, 2], [0, 7], vocabulary, torch.device(check.device)).cpu()
    off = float((here / exponential_noise([1, 2], [0, 7], vocabulary, torch.device("cpu")) - 1).abs().max())
    check.figure("noise_from_cpu", off, most=1e-5)
