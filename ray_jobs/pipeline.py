"""Runs the whole pipeline: `ray job submit --working-dir . -- python ray_jobs/pipeline.py --run-dir /shared/runs/x`."""

from _job import main

if __name__ == "__main__":
    main()
