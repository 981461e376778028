"""Run the pipeline up to and including stage `sample`: `stage.py sample`."""

from stage import main

main("sample")
