"""The language of judges: prompts, the grammar of verdicts, its parser, and the tokens of verdicts."""
