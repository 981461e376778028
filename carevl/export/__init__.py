"""Rows of a run in the formats that other trainers read."""
