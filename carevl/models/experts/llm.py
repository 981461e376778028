"""Kind `llm`: any language model that follows instructions is an expert, without having been trained to score.

`scoring` says how. `likelihood`: what the caption adds to the log-probability of a response, log p(response | caption,
question) - log p(response | question), in nats; 0 without a caption. `yes` and `pairwise`: see
`carevl.models.experts.questions`. With settings under `endpoint`, the model is asked there; an endpoint for chats does
not tell the likelihood of a text that it did not write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from carevl.errors import SettingsError, UserError
from carevl.models.control_strings import encode_text
from carevl.models.conversations import Encoded, as_text, encode_turns, too_long
from carevl.models.engines import language_model
from carevl.models.experts import endpoint, questions
from carevl.models.experts.base import ExpertKind, RowScorer, TextRow
from carevl.models.locate import weights_fingerprint
from carevl.models.row_errors import Failure, SomeRowsError, retry_engine

if TYPE_CHECKING:
    from carevl.models.engines.base import LanguageModel
    from carevl.settings.models import Expert, Scoring

Job = tuple[list[int], list[list[int]]]
"""Token ids that texts begin with, and of how each of them goes on."""


def score_rows(model: LanguageModel, rows: Sequence[TextRow], scoring: Scoring) -> list[list[float]]:
    """Return one score per response of every row.

    Raises:
        SomeRowsError: rows are longer than the model reads, or have an empty response; the others are in it.
    """
    encode, score = _SCORINGS[scoring]
    failures: dict[int, Failure] = {}
    jobs: dict[int, list[Job]] = {}
    for number, row in enumerate(rows):
        encoded = encode(model.tokenizer, row)
        if not all(texts and all(texts) for _, texts in encoded):
            failures[number] = Failure("empty", "an empty response has no likelihood")
            continue
        whole = [Encoded([*beginning, *text]) for beginning, texts in encoded for text in texts]
        if long := too_long(whole, model.limit):
            failures[number] = next(iter(long.values()))
        else:
            jobs[number] = encoded
    scores = dict(zip(jobs, score(model, list(jobs.values())), strict=True))
    if failures:
        raise SomeRowsError([scores.get(number) for number in range(len(rows))], failures)
    return list(scores.values())


def _encode_yes(tokenizer: Any, row: TextRow) -> list[Job]:
    return [([], encode_turns(tokenizer, questions.ask_yes(as_text(row[0]), row[1])))]


def _encode_pairwise(tokenizer: Any, row: TextRow) -> list[Job]:
    return [([], encode_turns(tokenizer, questions.ask_pairwise(as_text(row[0]), row[1])))]


def _encode_likelihood(tokenizer: Any, row: TextRow) -> list[Job]:
    """Return what is asked with captions and without, each with all responses."""
    asked, responses, bare = row
    replies = [encode_text(tokenizer, response) for response in responses]
    return [(prompt, replies) for prompt in encode_turns(tokenizer, [asked, bare])]


def _score_yes(model: LanguageModel, rows: Sequence[list[Job]]) -> list[list[float]]:
    return _odds(model, rows, questions.WORDS)


def _score_pairwise(model: LanguageModel, rows: Sequence[list[Job]]) -> list[list[float]]:
    return [questions.score_pairs(odds) for odds in _odds(model, rows, questions.LETTERS)]


def _score_likelihood(model: LanguageModel, rows: Sequence[list[Job]]) -> list[list[float]]:
    # The bare question of an item is asked with its caption's row and with the row that has none.
    distinct = {_key(job): job for row in rows for job in row}
    sums = dict(zip(distinct, model.log_likelihoods(list(distinct.values())), strict=True))
    gains = [(sums[_key(captioned)], sums[_key(bare)]) for captioned, bare in rows]
    return [[a - b for a, b in zip(captioned, bare, strict=True)] for captioned, bare in gains]


def _key(job: Job) -> tuple[tuple[int, ...], ...]:
    return (tuple(job[0]), *map(tuple, job[1]))


def _odds(model: LanguageModel, rows: Sequence[list[Job]], words: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return the log-odds of the first words over the second as the reply to every text."""
    first, second = find_words(model.tokenizer, words)
    read = model.next_log_probabilities([texts for [(_, texts)] in rows], [*first, *second])
    cut = len(first)
    return [[questions.log_odds(text[:cut], text[cut:]) for text in group] for group in read]


def find_words(tokenizer: object, words: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the tokens that begin the words of each kind, bare or after a space, and those of no other kind.

    Raises:
        UserError: every word of a kind begins as one of another does.
    """
    tokens = [{encode_text(tokenizer, text)[0] for word in kind for text in (word, f" {word}")} for kind in words]
    shared = set.intersection(*tokens)
    own = [sorted(kind - shared) for kind in tokens]
    if not all(own):
        names = " and ".join(kind[0] for kind in words)
        raise UserError(f"the model's tokenizer writes {names} with the same first token; use scoring: likelihood")
    return own


Encode = Callable[[Any, TextRow], list[Job]]
Score = Callable[["LanguageModel", Sequence[list[Job]]], list[list[float]]]
_SCORINGS: dict[Scoring, tuple[Encode, Score]] = {
    "likelihood": (_encode_likelihood, _score_likelihood),
    "yes": (_encode_yes, _score_yes),
    "pairwise": (_encode_pairwise, _score_pairwise),
}


class LanguageModelKind(ExpertKind):
    """Weights in a directory or on the hub, which `engine` runs; or a model behind an endpoint."""

    name = "llm"

    def load(self, expert: Expert) -> RowScorer:
        """Load the model into its engine, or open a client to its endpoint."""
        if expert.endpoint is not None:
            return endpoint.KIND.load(expert)
        model, scoring = language_model(expert), _scoring(expert)
        return lambda rows: retry_engine(
            model, lambda batch: score_rows(model, cast("Sequence[TextRow]", batch), scoring), rows
        )

    def fingerprint(self, expert: Expert) -> str:
        """Return what identifies the weights or the service, the way to score and the version of its questions."""
        if expert.endpoint is not None:
            model = endpoint.KIND.fingerprint(expert)
        else:
            model = weights_fingerprint(expert.path, expert.revision)
        return f"{model} {_scoring(expert)} {questions.VERSION}"

    def loads_weights(self, expert: Expert) -> bool:
        """Return whether the model is loaded here."""
        return expert.endpoint is None

    def check(self, expert: Expert) -> None:
        """Refuse the likelihood of an endpoint, and what an endpoint is refused for."""
        if expert.endpoint is None:
            return
        if _scoring(expert) == "likelihood":
            raise SettingsError(
                f"expert {expert.name}: scoring: likelihood needs the model's weights, and an endpoint for chats does "
                "not tell how likely a text is; set scoring to yes or pairwise"
            )
        endpoint.KIND.check(expert)


def _scoring(expert: Expert) -> Scoring:
    if expert.scoring is not None:
        return expert.scoring
    return "likelihood" if expert.endpoint is None else "pairwise"


KIND = LanguageModelKind()
