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
    route_low,
    sample,
    score,
    score_testimony,
    select,
    sft,
    testify,
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
    testify.STAGE,
    sample.STAGE,
    score_testimony.STAGE,
    route_low.STAGE,
    select.STAGE,
    dpo.STAGE,
    evaluate.STAGE,
)
