"""Run the pipeline up to and including stage `dpo`: `stage.py dpo`."""

from stage import main

main("dpo")
