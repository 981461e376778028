"""Settings: one strict tree (`tree`), every field documented; a preset or a YAML file fills it (`loader`)."""
