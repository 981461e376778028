"""The registry of preference formats, and of formats of questions without responses, one file each."""

from __future__ import annotations

from carevl.data.formats import (
    arena,
    coco_captions,
    helpsteer3,
    items,
    llamafactory_alpaca,
    llamafactory_sharegpt,
    llava_instruct,
    llava_rlhf,
    mm_rlhf,
    ms_swift,
    openai,
    povid,
    question,
    rlaif_v,
    rlhf_v,
    spa_vl,
    text_pair,
    trl,
    vlfeedback,
    vqa,
)
from carevl.data.formats.base import Format
from carevl.settings.registry import Registry

FORMATS = Registry(
    "preference format",
    Format,
    (
        vlfeedback.FORMAT,
        rlaif_v.FORMAT,
        rlhf_v.FORMAT,
        mm_rlhf.FORMAT,
        povid.FORMAT,
        spa_vl.FORMAT,
        llava_rlhf.FORMAT,
        trl.FORMAT,
        llamafactory_sharegpt.FORMAT,
        llamafactory_alpaca.FORMAT,
        ms_swift.FORMAT,
        arena.FORMAT,
        openai.FORMAT,
        items.FORMAT,
        helpsteer3.FORMAT,
        text_pair.FORMAT,
        coco_captions.FORMAT,
        question.FORMAT,
        vqa.FORMAT,
        llava_instruct.FORMAT,
    ),
)
"""Every format by name. Where two fit equally well, the first one is detected."""
