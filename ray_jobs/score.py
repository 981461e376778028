"""Run the pipeline up to and including stage `score`: `stage.py score`."""

from stage import main

main("score")
