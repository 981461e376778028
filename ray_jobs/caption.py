"""Run the pipeline up to and including stage `caption`: `stage.py caption`."""

from stage import main

main("caption")
