"""Run the pipeline up to and including stage `route`: `stage.py route`."""

from stage import main

main("route")
