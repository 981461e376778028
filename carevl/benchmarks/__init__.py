"""Benchmarks of judges: what to ask, and what the answers are worth. Only `answering` and `endpoint` ask one."""
