"""Run the pipeline up to and including stage `ingest`: `stage.py ingest`."""

from stage import main

main("ingest")
