"""Log-probabilities of chosen and rejected under the reference, which is the judge that phase 2 begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from carevl.models.device import device
from carevl.models.judge_files import load_processor
from carevl.models.packing import row_tokens
from carevl.settings.training import Packing, Training
from carevl.training.items import COLUMNS, REFERENCE, Encoder, Items
from carevl.training.judge import load_judge, log_probabilities
from carevl.training.schedule import micro_batches
from carevl.training.trainable import add_adapter
from carevl.training.trial import try_packing


class Reference:
    """Adds the reference columns to rows for dpo; loads the judge once.

    Args:
        judge: the directory that phase 2 will begin with.
        training: the settings of phase 2; rows are packed and computed as they will be there.
        adapter: directory of the adapter that phase 2 will begin with on top of it.
        resize_pixels: as for `Encoder`.
    """

    def __init__(
        self, judge: Path, training: Training, adapter: Path | None = None, *, resize_pixels: int | None = None
    ) -> None:
        self.training, self.resize_pixels = training, resize_pixels
        self.processor = load_processor(judge)
        self.model: Any = load_judge(judge, training.dtype, training.base_bits)
        if adapter is not None:
            add_adapter(self.model, adapter)
        self.model.to(device()).eval()
        shares = training.packing == "shared" and try_packing(self.model, self.processor).packing == "shared"
        self.packing: Packing = "shared" if shares else "plain"

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows with the columns of `items.REFERENCE`, null where a row cannot be trained on."""
        training = self.training
        packing = self.packing
        encoder = Encoder(
            self.processor,
            training.batch_tokens,
            packing=packing,
            resize_pixels=self.resize_pixels,
        )
        encoded, images, errors = encoder.encode(rows.select(COLUMNS["dpo"]), "dpo")
        items = Items.of(encoded, images)
        values: list[list[float]] = [[]] * len(items)
        everything = list(range(len(items)))
        most = row_tokens(self.model, packing, training.batch_tokens)
        [batches] = micro_batches(everything, items.shapes, 1, most, packing)
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
