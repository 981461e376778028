"""The language of judges: prompts, the grammar of verdicts, its reader, and the tokens of verdicts."""

from carevl.judging.verdicts import Reading, read_verdict

__all__ = ["Reading", "read_verdict"]
