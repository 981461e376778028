"""The stages, in the order in which they run: a file each."""

from carevl.stages import (
    caption,
    demonstrate,
    dpo,
    evaluate,
    gather,
    ingest,
    respond,
    route,
    sample,
    score,
    select,
    sft,
)

STAGES = (
    ingest.STAGE,
    respond.STAGE,
    gather.STAGE,
    caption.STAGE,
    score.STAGE,
    route.STAGE,
    demonstrate.STAGE,
    sft.STAGE,
    sample.STAGE,
    select.STAGE,
    dpo.STAGE,
    evaluate.STAGE,
)
