"""Log-probabilities of chosen and rejected under the reference, which is the judge that phase 2 begins with.

A pool of actors that hold the whole judge adds them to the rows. Where its weights are spread over the workers, because
nobody holds all of them, the workers compute them before their first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from carevl.models.device import device
from carevl.models.families import family_of
from carevl.models.judge_files import load_processor
from carevl.models.packing import row_tokens
from carevl.models.prompts import ask_as
from carevl.settings.asking import Asking
from carevl.settings.training import Packing, Training
from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.table import write_atomically
from carevl.training.encoder import COLUMNS, MORE_COLUMNS, REFERENCE, Encoder
from carevl.training.items import Items
from carevl.training.judge import load_judge, log_probabilities
from carevl.training.schedule import micro_batches
from carevl.training.steps import all_gather
from carevl.training.trainable import add_adapter
from carevl.training.trial import try_packing

if TYPE_CHECKING:
    from carevl.training.loop import Loop


def compute_references(loop: Loop, file: Path) -> Mapping[int, list[float]]:
    """Compute the reference of every pair with the judge as it is, before its first step; all workers have to call it.

    Args:
        file: where worker 0 keeps them for the next time.

    Returns:
        Log-probabilities of chosen and rejected, in nats, by the number of the item.
    """
    [kept, *_] = all_gather(_read_kept(file) if loop.rank == 0 else None, loop.world)
    if kept is None:
        pairs = [i for i, phase in enumerate(loop.items.phases) if phase == "dpo"]
        mine: dict[int, list[float]] = {}
        loop.engine.eval()
        with torch.no_grad():
            for batch, loaded in loop.prefetch(loop.shard(pairs)):
                mine |= zip(batch.items, loop.engine(loaded).view(-1, 2).tolist(), strict=True)
        loop.engine.train()
        kept = {i: pair for worker in all_gather(mine, loop.world) for i, pair in worker.items()}
        if loop.rank == 0:
            write_atomically(file, encode_json({str(i): pair for i, pair in kept.items()}))
    return {int(i): pair for i, pair in kept.items()}


def _read_kept(file: Path) -> Mapping[str, list[float]] | None:
    """Return the references in a file; None where there are none, or not those that were written."""
    try:
        return read_json(file, "") if file.exists() else None
    except DamagedError:
        return None


class Reference:
    """Adds the reference columns to rows for dpo; loads the judge once.

    Args:
        judge: the directory that phase 2 will begin with.
        training: the settings of phase 2; rows are packed and computed as they will be there.
        adapter: directory of the adapter that phase 2 will begin with on top of it.
        resize_pixels: as for `Encoder`.
        asking: how prompts are written; None: as carevl asks.
    """

    def __init__(
        self,
        judge: Path,
        training: Training,
        adapter: Path | None = None,
        *,
        resize_pixels: int | None = None,
        asking: Asking | None = None,
    ) -> None:
        self.training, self.resize_pixels = training, resize_pixels
        self.processor = ask_as(load_processor(judge), asking)
        self.model: Any = load_judge(judge, training.dtype, training.base_bits)
        if adapter is not None:
            add_adapter(self.model, adapter)
        self.model.to(device()).eval()
        shares = training.packing == "shared" and try_packing(self.model, self.processor).packing == "shared"
        self.packing: Packing = "shared" if shares else "plain"

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows with the columns of `encoder.REFERENCE`, null where a row cannot be trained on."""
        training = self.training
        packing = self.packing
        encoder = Encoder(
            self.processor,
            training.batch_tokens,
            packing=packing,
            resize_pixels=self.resize_pixels,
            mixes_sizes=family_of(self.model).mixes_sizes,
        )
        read = [name for name in (*COLUMNS["dpo"], *MORE_COLUMNS) if name in rows.column_names]
        encoded, images, errors = encoder.encode(rows.select(read), "dpo")
        items = Items.of(encoded, images)
        values: list[list[float]] = [[]] * len(items)
        everything = list(range(len(items)))
        most = row_tokens(self.model, packing, training.batch_tokens)
        [batches] = micro_batches(everything, items.shapes, 1, most, packing, kinds=items.n_images)
        reading = items.prefetch(batches, self.processor, self.model, packing)
        for batch, loaded in reading:
            with torch.inference_mode():
                pairs = log_probabilities(self.model, loaded.to(self.model.device)).view(-1, 2).tolist()
            for i, pair in zip(batch.items, pairs, strict=True):
                values[i] = pair
        bad, good = {error["row"] for error in errors}, iter(values)
        columns = [[None, None] if row in bad else next(good) for row in range(rows.num_rows)]
        for column, name in enumerate(REFERENCE):
            rows = rows.append_column(name, pa.array([pair[column] for pair in columns], pa.float64()))
        return rows
