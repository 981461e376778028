"""Run the pipeline up to and including stage `sft`: `stage.py sft`."""

from stage import main

main("sft")
