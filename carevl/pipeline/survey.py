"""What a run will meet, before it is paid for: sampled rows, their tokens, a probe by every expert, what fits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from carevl.cluster.resources import card_memory
from carevl.data.drawn import data_root
from carevl.data.images import decode_rgb
from carevl.data.videos import FrameReader
from carevl.errors import UserError
from carevl.judging.prompts import judge_turn
from carevl.judging.turns import Turn, turns_of
from carevl.judging.verdict_tokens import VERDICT_TEXTS
from carevl.models.control_strings import encode_text
from carevl.models.conversations import encode
from carevl.models.engines import close_engines
from carevl.models.experts import EXPERT_KINDS, load_expert
from carevl.models.experts.inputs import ExpertInput, fill_captions
from carevl.models.families import find_family
from carevl.models.judge_files import load_processor
from carevl.models.judge_spec import asking_of
from carevl.models.locate import loading_arguments
from carevl.models.memory import find_lack
from carevl.models.own_code import code_arguments, explain_loading_of, trust_own_code
from carevl.models.prompts import Prompt, ask_as, encode_with_row_errors
from carevl.models.row_errors import Failure, first_line
from carevl.pipeline.check import check_settings
from carevl.pipeline.downloads import find_models, loaded_models, models_by_setting
from carevl.pipeline.fit import Fit, find_fits
from carevl.settings.models import Captioner, Judge
from carevl.stages import STAGES
from carevl.stages.ingest import limits_of, read_rows
from carevl.stages.respond import write_prompt
from carevl.training.image_sizes import by_size
from carevl.training.inspection import draw_probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from carevl.pipeline.downloads import ModelState
    from carevl.settings.asking import Asking
    from carevl.settings.models import Expert
    from carevl.settings.respond import Responder
    from carevl.settings.tree import Settings
    from carevl.store.run import Run

_PROBE = ("A red circle is left of a blue square.", "What is left of the square?", ["A red circle.", "A green cross."])
"""Caption, question and responses that every expert scores."""


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a sample as a model reads it: the fewest, the median and the most, of `n` images or items.

    `over` of them have more than `limit`, which `setting` says; both are None for images.
    """

    model: str
    of: str
    n: int
    least: int
    typical: float
    most: int
    limit: int | None = None
    over: int | None = None
    setting: str | None = None

    @classmethod
    def of_values(cls, model: str, of: str, values: Sequence[int], limit: int | None = None, setting: str = "") -> Any:
        """Count values, of which there is one at least."""
        over = None if limit is None else sum(value > limit for value in values)
        return cls(model, of, len(values), min(values), median(values), max(values), limit, over, setting or None)

    def line(self) -> str:
        """Return a line."""
        counts = f"{self.least} to {self.most} tokens, {self.typical:g} the median, of {self.n} {self.of}"
        if self.limit is None:
            return f"{self.model:16s} {counts}"
        return f"{self.model:16s} {counts}; {self.over} have more than the {self.limit} that {self.setting} leaves them"


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        rows: source rows that were looked at; `errors` counts those that cannot be used by kind, `examples` has the
            first of each kind, with its place.
        tokens: of images and items, by the model that reads them; `unread` says which models could not be asked.
        verdict: token ids of the numbers 1 to 5 at the place of a verdict, bare and after a space.
        probes: two scores by the name of the expert, or why there are none.
        fits: what the stages take of a card.
    """

    rows: int
    errors: Mapping[str, int]
    examples: Mapping[str, str]
    tokens: Sequence[TokenCounts]
    unread: Mapping[str, str]
    verdict: Mapping[str, int]
    probes: Mapping[str, list[float] | str]
    fits: Sequence[Fit]

    @property
    def problems(self) -> list[str]:
        """Why a run would fail."""
        return [problem for fit in self.fits if (problem := fit.problem())]

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        fits = [
            {"table": fit.table, "model": fit.loaded.setting, "bytes": fit.needed, "room": fit.room}
            | {"parts": {} if fit.footprint is None else fit.footprint.parts()}
            for fit in self.fits
        ]
        same = {"rows": self.rows, "errors": dict(self.errors), "examples": dict(self.examples)}
        found = {"unread": dict(self.unread), "verdict": dict(self.verdict), "probes": dict(self.probes)}
        return {**same, "tokens": [asdict(counts) for counts in self.tokens], **found, "fits": fits} | {
            "problems": self.problems
        }

    def lines(self) -> Iterator[str]:
        """Yield what was found."""
        good = self.rows - sum(self.errors.values())
        yield f"{'sources':16s} {good} of the first {self.rows} rows can be used"
        for kind, message in self.examples.items():
            yield f"{'':16s} {self.errors[kind]} {kind}, such as {message}"
        yield from (counts.line() for counts in self.tokens)
        yield from (f"{model:16s} {reason}" for model, reason in self.unread.items())
        if self.verdict:
            written = ", ".join(f"{text!r} {token}" for text, token in self.verdict.items())
            yield f"{'verdict':16s} is read at the first token of {written}"
        for name, scores in self.probes.items():
            told = (
                scores
                if isinstance(scores, str)
                else f"{scores[0]:.4g} for a right and {scores[1]:.4g} for a wrong response"
            )
            yield f"{'score/' + name:16s} {told}"
        yield from (fit.line() for fit in self.fits)


def survey(settings: Settings, run: Run, rows: int, log: Callable[[str], None]) -> Survey:
    """Look at what a run of some settings will meet. Nothing is fetched from a hub, and nothing is written.

    Args:
        run: where data that have to be drawn may lie already.
        rows: source rows to look at.
        log: called with a line before whatever takes long.

    Raises:
        SettingsError: a run cannot use the settings.
    """
    check_settings(settings)
    tables = [table for stage in STAGES for table in stage.tables(settings)]
    states = find_models(models_by_setting(settings, tables))
    log(f"reading {rows} rows")
    sample = _read_sample(settings, run, rows)
    errors = Counter(item["error"]["kind"] for _, item in sample if item["error"])
    examples = {item["error"]["kind"]: _example(item) for _, item in reversed(sample) if item["error"]}
    reader = _Reader(settings, [(files, item) for files, item in sample if not item["error"]])
    log("counting tokens")
    reader.read_writer("captioner", settings.captioner, states["captioner"])
    reader.read_writer("judge", settings.judge, states["judge"])
    for n, responder in enumerate(settings.respond.models):
        reader.read_writer(f"respond.models.{n}", responder, states[f"respond.models.{n}"])
    for n, expert in enumerate(settings.experts):
        reader.read_expert(expert, states.get(f"experts.{n}"))
    probes = {expert.name: _probe(expert, states.get(f"experts.{n}"), log) for n, expert in enumerate(settings.experts)}
    loaded = loaded_models(settings, tables)
    card = card_memory(settings.cluster) if any(model.gpus for _, model in loaded) else None
    fits = find_fits(loaded, states, card)
    return Survey(len(sample), errors, examples, reader.tokens, reader.unread, reader.verdict, probes, fits)


def _example(item: Mapping[str, Any]) -> str:
    """Return where an error row comes from, and why it is one."""
    return "{source} {locator}: {message}".format(**item["sources"][0], message=item["error"]["message"])


Sampled = tuple[list[bytes], dict[str, Any]]
"""The files of the images that a row of `items` shows, in their order, and the row."""


def _read_sample(settings: Settings, run: Run, rows: int) -> list[Sampled]:
    with data_root(settings, run) as root:
        taken = itertools.islice(read_rows(root, None, FrameReader(settings.data.video)), rows)
        sampled = []
        for images, item, _ in taken:
            files = {image["image_id"]: image["bytes"] for image in images}
            sampled.append(([files[name] for name in item["images"] if item["error"] is None], item))
        return sampled


class _Reader:
    """Counts the tokens of sampled items, as every model reads them."""

    def __init__(self, settings: Settings, items: Sequence[Sampled]) -> None:
        self.settings, self.items = settings, [(files, item) for files, item in items if item["responses"]]
        self.questions = [(files, item) for files, item in items if not item["responses"]]
        self.tokens: list[TokenCounts] = []
        self.unread: dict[str, str] = {}
        self.verdict: dict[str, int] = {}

    def read_writer(self, setting: str, model: Captioner | Judge | Responder, state: ModelState) -> None:
        """Count images and prompts of a model that writes."""
        if state.directory is None:
            self.unread[setting] = f"{model.path} is not on this machine; `carevl run` fetches it"
            return
        try:
            with trust_own_code(model.trust_remote_code):
                processor, config = load_processor(state.directory), _config(state.directory)
        except UserError as error:
            self.unread[setting] = str(error)
            return
        asking = asking_of(model) if isinstance(model, Judge) else None
        limits = limits_of(self.settings.data)
        sized = by_size(ask_as(processor, asking))
        family = find_family(config.model_type)
        token = family.image_token(config)
        images, prompts, refused = [], [], ""
        asked = list(self._prompts(model, asking))
        for written, files in asked:
            pictures = [decode_rgb(data, limits, self.settings.data.resize_pixels) for data in files]
            encoded, failures = encode_with_row_errors(sized, [written], [pictures], family)
            if encoded is None:
                refused = failures[0].message
                continue
            images.append(encoded.ids[0].count(token))
            prompts.append(len(encoded.ids[0]))
        if refused:
            self.unread[setting] = f"{len(asked) - len(prompts)} of {len(asked)}: {refused}"
        if prompts:
            room = model.max_model_len - model.max_tokens
            left = f"{setting}.max_model_len less {setting}.max_tokens"
            self.tokens.append(TokenCounts.of_values(setting, "images", images))
            self.tokens.append(TokenCounts.of_values(setting, "prompts", prompts, room, left))
        if isinstance(model, Judge):
            ids = {text: encode_text(processor.tokenizer, text)[0] for text in VERDICT_TEXTS}
            self.verdict = ids
            for phase in ("sft", "dpo") if prompts else ():
                most = getattr(self.settings, phase).batch_tokens
                self.tokens.append(
                    TokenCounts.of_values(phase, "prompts", prompts, most - model.max_tokens, f"{phase}.batch_tokens")
                )

    def _prompts(
        self, model: Captioner | Judge | Responder, asking: Asking | None
    ) -> Iterator[tuple[Prompt, list[bytes]]]:
        """Yield what a model is asked about the sampled items, and the images that it is shown."""
        if isinstance(model, Captioner):
            yield from ((Prompt(model.prompt), [data]) for files, _ in (*self.items, *self.questions) for data in files)
        elif isinstance(model, Judge):
            template = None if asking is None else asking.pairwise
            for files, item in self.items:
                turn = judge_turn("pairwise", turns_of(item), item["responses"][:2], template=template)
                yield Prompt(turn.text, places=turn.places), files
        else:
            for files, item in self.questions:
                *before, question = turns_of(item)
                for prompt in model.prompts:
                    turn = write_prompt(prompt, question)
                    yield Prompt(turn.text, places=turn.places, earlier=tuple(before)), files

    def read_expert(self, expert: Expert, state: ModelState | None) -> None:
        """Count conversations without a caption, and with one of the longest."""
        if state is None or not self.items:
            return
        if state.directory is None:
            self.unread[f"score/{expert.name}"] = f"{expert.path} is not on this machine; `carevl run` fetches it"
            return
        if EXPERT_KINDS[expert.kind].sees_images:
            self.unread[f"score/{expert.name}"] = "its tokens are not counted: it sees images"
            return
        from transformers import AutoTokenizer

        with explain_loading_of(expert):
            tokenizer = AutoTokenizer.from_pretrained(state.directory, **loading_arguments(expert))
        texts = [
            (fill_captions(expert, turns_of(item), [""] * len(item["images"])), response)
            for _, item in self.items
            for response in item["responses"]
        ]
        lengths = [len(text.ids) for text in encode(tokenizer, texts)]
        room = expert.max_model_len - self.settings.captioner.max_tokens
        left = f"{expert.name}'s max_model_len less captioner.max_tokens"
        self.tokens.append(TokenCounts.of_values(f"score/{expert.name}", "conversations", lengths, room, left))


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory, **code_arguments())


def _probe(expert: Expert, state: ModelState | None, log: Callable[[str], None]) -> list[float] | str:
    """Return an expert's scores of the probe, or why it has none."""
    if state is not None:
        if state.directory is None:
            return "not asked: it is not on this machine"
        if lack := find_lack(state.directory, expert.dtype):
            return f"not asked: {lack}"
    caption, question, responses = _PROBE
    log(f"asking {expert.name}")
    try:
        kind = EXPERT_KINDS[expert.kind]
        image = (draw_probe(),) if kind.sees_images else ()
        probe = ExpertInput((Turn("user", question, (0,)),), responses, (caption,), image)
        row: Any = probe.image_row() if kind.sees_images else probe.row(expert)
        [scores] = load_expert(expert)([row])
    except (UserError, OSError, ValueError, ImportError) as error:
        return f"cannot be loaded: {first_line(error)}"
    finally:
        close_engines()
    return scores.message if isinstance(scores, Failure) else scores
