"""What a run made, written in the formats that other trainers read."""
