"""The optimisation loop behind every small model: chunks of batches in, a finished or resumable state out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Fit:
    """Trains a model for a number of chunks, with checkpoints on the way.

    Args:
        name: shown in progress lines.
        model: its state is checkpointed together with the optimisers'.
        loss: gives a batch's loss and the share of taught tokens (or scores) it got right.
        state_file: where the checkpoint lies; a run that finds it goes on from there.
        rate: learning rate; warms up over 100 steps and falls linearly to `last_rate`.
        chunks: how many chunks of batches to train on.
        log: takes lines of progress.
        checkpoint_seconds: least time between two checkpoints.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        loss: Callable[[Any], tuple[Tensor, float]],
        state_file: Path,
        *,
        rate: float,
        last_rate: float,
        chunks: int,
        log: Callable[[str], None],
        checkpoint_seconds: float = 120,
    ) -> None:
        self.name, self.model, self.loss, self.state_file = name, model, loss, state_file
        self.rate, self.last_rate, self.chunks = rate, last_rate, chunks
        self.checkpoint_seconds, self.log = checkpoint_seconds, log
        self.step = 0
        self.optimisers = _optimisers(model, rate)
        self.first_chunk = self._restore()

    def _restore(self) -> int:
        import torch

        if not self.state_file.exists():
            return 0
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = int(state["step"])
        self.log(f"{self.name}: resumed at chunk {state['chunk']} of {self.chunks}")
        return int(state["chunk"])

    def _save(self, chunk: int) -> None:
        import torch

        unfinished = self.state_file.with_suffix(".part")
        state = {
            "chunk": chunk,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, unfinished)
        os.replace(unfinished, self.state_file)

    def run(self, stream: Iterator[tuple[int, Sequence[Any]]]) -> None:
        """Train to the end; `stream` begins at `first_chunk`."""
        started = saved = time.monotonic()
        for chunk, batches in stream:
            if chunk >= self.chunks:
                break
            losses, right = 0.0, 0.0
            for i, batch in enumerate(batches):
                self._set_rate((chunk + i / len(batches)) / self.chunks)
                loss, share = self.loss(batch)
                self._update(loss)
                losses, right = losses + loss.item() / len(batches), right + share / len(batches)
            done = chunk + 1 - self.first_chunk
            left = (time.monotonic() - started) / done * (self.chunks - chunk - 1)
            if chunk % 10 == 9 or chunk + 1 == self.chunks:
                self.log(
                    f"{self.name}: chunk {chunk + 1}/{self.chunks}  loss {losses:.3f}  right {right:.1%}  "
                    f"{left / 60:.1f} min left"
                )
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save(chunk + 1)
                saved = time.monotonic()
        self._save(self.chunks)

    def _set_rate(self, progress: float) -> None:
        rate = (self.rate + (self.last_rate - self.rate) * progress) * min(1.0, (self.step + 1) / 100)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def _update(self, loss: Tensor) -> None:
        import torch

        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1


def _optimisers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Give Muon to the matrices inside the blocks, AdamW to embeddings, heads, norms and biases."""
    import torch

    from carevl.miniworld.muon import Muon

    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "score", "classifier"))
        (inner if hidden else outer).append(parameter)
    return [
        Muon(inner, lr=rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(outer, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]
