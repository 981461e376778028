"""Run the whole pipeline."""

from stage import main

main(whole=True)
