"""Runs the pipeline up to and including stage `evaluate`."""

from _job import main

if __name__ == "__main__":
    main("evaluate")
