"""Run the pipeline up to and including stage `select`: `stage.py select`."""

from stage import main

main("select")
