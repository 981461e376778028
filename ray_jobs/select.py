"""Runs the pipeline up to and including stage `select`."""

from _job import main

if __name__ == "__main__":
    main("select")
