"""Run the pipeline up to and including stage `evaluate`: `stage.py evaluate`."""

from stage import main

main("evaluate")
