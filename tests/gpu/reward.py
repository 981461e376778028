"""An 8B reward model in bfloat16: its own noise between batch shapes, and tokens per second."""

from __future__ import annotations

import torch

from carevl.models.flex_attention import FLEX
from carevl.models.packing import pack
from carevl.models.reward_head import is_bidirectional, probe_ids
from carevl.models.tree_attention import TREES, branch_states
from tests.gpu.figures import Check
from tests.gpu.models import TextModel, make_scorer, text_trees


@torch.inference_mode()
def run(check: Check) -> None:
    """Write the noise and the speed."""
    model = make_scorer(check)
    check.figure("scorer_bidirectional", float(is_bidirectional(model)), most=0)
    ids = probe_ids(model, 300, 8)
    alone = torch.cat([model(input_ids=row[None]).logits[:, 0].float() for row in ids])
    together = model(input_ids=ids).logits[:, 0].float()
    noise = float((alone - together).abs().max())
    check.figure("scorer_noise", noise, spread=round(float(alone.std()), 4), largest=round(float(alone.abs().max()), 4))
    packed = pack(text_trees(600 if check.small else 8192, 5, 900), TextModel).to(check.device)
    for kind in [FLEX, TREES] if check.on_gpu else [TREES]:
        model.set_attn_implementation(kind)
        seconds = check.seconds(lambda: branch_states(model, packed))
        check.figure("scorer_tokens_per_second", packed.ids.numel() / seconds, attention=kind, rows=1)
