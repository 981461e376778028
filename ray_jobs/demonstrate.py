"""Run the pipeline up to and including stage `demonstrate`: `stage.py demonstrate`."""

from stage import main

main("demonstrate")
