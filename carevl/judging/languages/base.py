"""The words that `read_verdict` knows of a language."""

from __future__ import annotations

from dataclasses import dataclass

Words = tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """The words of one language."""

    labels: Words = ()
    """Announce a verdict of any task, wherever they stand: `overall judgment`."""
    headings: Words = ()
    """Announce a verdict where a line or a sentence begins with them: `winner`."""
    fields: Words = ()
    """Announce a verdict as a key of JSON; elsewhere only where nothing else does, before a response: `answer`."""
    ratings: Words = ()
    """Nouns of a rating; they announce one as `headings` do."""
    rankings: Words = ()
    """The same of a ranking."""
    evidence: Words = ()
    """Headings and keys of what is no verdict, but the reason for one."""
    names: Words = ()
    """A response as it was shown; {n} stands for its number, {nth} for its ordinal number."""
    numbers: Words = ()
    """Words for 1, 2, 3, …"""
    ordinals: Words = ()
    """Words for 1st, 2nd, 3rd, …"""
    is_: Words = ()
    """Between a response and what is said of it."""
    better: Words = ()
    """What is said of the better one."""
    good: Words = ()
    """What is said of it in a comparison with another one alone, where the language has no other form for that."""
    more: Words = ()
    """What is said of the better one in some respect: a verdict under a label alone."""
    gives: Words = ()
    """Verbs before what a response has that is better, read under a label alone."""
    worse: Words = ()
    wrong: Words = ()
    """Beside a response that is named alone: it is not named as the better one."""
    equal: Words = ()
    """State a tie, or that the judge cannot decide."""
    alike: Words = ()
    """The same, read under a label alone: elsewhere they may speak of one respect."""
    not_: Words = ()
    than: Words = ()
    and_: Words = ()
    """Between two responses of which the same is said."""
    because: Words = ()
    but: Words = ()
    therefore: Words = ()
    if_: Words = ()
    prefer: Words = ()
    """Before the better response: `the better answer is`."""
    rate: Words = ()
    """Before a rating: `I would give it`."""
    claims: Words = ()
    """Verbs by which somebody else than the judge says something."""
    holds: Words = ()
    """Verbs between a response and what stands in it."""
    in_: Words = ()
    """Before the respect in which a response is better."""
    nouns: Words = ()
    """Words for a response without its number, and what else may follow `better`."""
    fillers: Words = ()
    """Articles, and adverbs that change no verdict."""
    points: Words = ()
    """Units of a rating."""
    out_of: Words = ()
    """Between a rating and the best one there is."""
    then: Words = ()
    """Between two responses of a ranking."""
    like: Words = ()
    """Before an example that is no verdict."""
