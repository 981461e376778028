"""Refuse what no run can use before anything runs: names that nothing has, settings that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from carevl.benchmarks.suite import refuse_unrated
from carevl.benchmarks.suites import SUITES
from carevl.cluster.connect import is_private
from carevl.data.formats import FORMATS
from carevl.errors import SettingsError, UserError, suggest
from carevl.models.chat_client import ChatClient
from carevl.models.engines import ENGINES
from carevl.models.engines.vllm_arguments import check_engine_args
from carevl.models.experts import EXPERT_KINDS
from carevl.models.hub import find_snapshot
from carevl.models.judge_files import check_judge
from carevl.models.locate import own_directory
from carevl.models.own_code import check_own_code
from carevl.settings.registry import import_object
from carevl.settings.requests import is_endpoint
from carevl.settings.schemes import split_scheme
from carevl.stages.base import find_unserved
from carevl.stages.rounds import all_stages
from carevl.stages.selection import RULES
from carevl.store.damage import DamagedError
from carevl.store.run import Run, RunError

if TYPE_CHECKING:
    from carevl.settings.data import Benchmark
    from carevl.settings.models import Captioner, Expert, Judge, Model
    from carevl.settings.respond import Responder
    from carevl.settings.training import Training
    from carevl.settings.tree import Settings

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BEFORE_ROUTE = ("ingest", "caption", "score")
_BEFORE_TRAINING = (*_BEFORE_ROUTE, "route", "demonstrate")


def check_settings(settings: Settings, until: str | None = None, *, final: bool = False) -> None:
    """Check everything about a run that can be told from its settings and the files that they name.

    Args:
        until: the last stage that will run; what only later stages need is not asked for. None: all of them.
        final: whether judges will be evaluated on test data.

    Raises:
        SettingsError: a line for every problem: the setting, what is wrong with it, and what to do.
    """
    stage = (until or "").split("/")[0]
    problems = [
        *_check_until(settings, until),
        *_check_sources(settings),
        *_check_models(settings),
        *_check_respond(settings),
        *_check_experts(settings),
        *_check_benchmarks(settings, final),
    ]
    if stage not in _BEFORE_ROUTE:
        problems += _check_router(settings)
    if stage not in _BEFORE_TRAINING:
        problems += _check_training(settings)
    if problems:
        raise SettingsError("\n".join(problems))


def check_training(settings: Settings) -> None:
    """Check what a training of both phases can tell from its settings and the files of the judge.

    Raises:
        SettingsError: as `check_settings`.
    """
    problems = [*_check_weights("judge", settings.judge), *_check_judge(settings), *_check_phases(settings)]
    if problems:
        raise SettingsError("\n".join(problems))


def check_record(settings: Settings, run: Run) -> None:
    """Keep what a rehearsal makes apart from what a run makes: in another directory.

    Raises:
        RunError: the run directory's last run was a rehearsal and this is none, or the other way round.
    """
    if not run.settings.exists():
        return
    try:
        stored = yaml.safe_load(run.settings.read_bytes())
        rehearsed = bool(stored.get("cluster", {}).get("rehearse"))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise DamagedError(run.settings, f"is damaged: {problem}", "remove it: the next run writes it anew") from None
    if rehearsed and not settings.cluster.rehearse:
        raise RunError(f"{run.root} holds a rehearsal, of which nothing is a result; choose another --run-dir")
    if settings.cluster.rehearse and not rehearsed:
        raise RunError(f"{run.root} holds a run that is no rehearsal; choose another --run-dir for --rehearse")


def _check_until(settings: Settings, until: str | None) -> Iterator[str]:
    stages = all_stages(settings)
    names = list(dict.fromkeys(part for stage in stages for part in (stage.name, stage.name.partition("/")[0])))
    tables = [table for stage in stages for table in stage.tables(settings)]
    if until is not None and until not in (*names, *tables):
        hint = suggest(until, [*names, *tables], f"the stages are {', '.join(names)}")
        yield f"--until {until}: there is no such stage; {hint}"


def _check_sources(settings: Settings) -> Iterator[str]:
    sources = settings.data.sources
    names = {f"data.sources.{n}.name": name for n, (name, _) in enumerate(settings.data.named_sources)}
    yield from _repeated(names, "a source without a name is called source-N")
    yield from _alike({f"data.sources.{n}.split": source.split for n, source in enumerate(sources)})
    for n, source in enumerate(sources):
        for field in ("path", "captions", "annotations", "questions"):
            yield from _missing(f"data.sources.{n}.{field}", getattr(source, field))
        if source.format is not None:
            yield from _refusal(f"data.sources.{n}.format", FORMATS.__getitem__, source.format)


def _check_models(settings: Settings) -> Iterator[str]:
    """Yield responders, the captioner and the judge: all write, in an engine that has room for what they write."""
    writers: dict[str, Captioner | Judge | Responder] = {
        **{f"respond.models.{n}": responder for n, responder in enumerate(settings.respond.models)},
        "captioner": settings.captioner,
        "judge": settings.judge,
    }
    for place, model in writers.items():
        yield from _check_weights(place, model)
        yield from _refusal(f"{place}.engine", ENGINES.__getitem__, model.engine)
        yield from _check_engine_args(place, model)
        if model.max_tokens >= model.max_model_len:
            yield (
                f"{place}.max_tokens: {model.max_tokens} tokens of answer leave no room for a prompt in "
                f"max_model_len {model.max_model_len}; raise the one, or lower the other"
            )


def _check_respond(settings: Settings) -> Iterator[str]:
    yield from _alike({f"respond.models.{n}.name": each.name for n, each in enumerate(settings.respond.models)})
    if settings.respond.rejected is not None:
        yield from _refusal("respond.rejected", _import_function, settings.respond.rejected)


def _import_function(path: str) -> None:
    if not callable(import_object(path, "function")):
        raise SettingsError(f"function {path}: it cannot be called")


def _check_weights(place: str, model: Model) -> Iterator[str]:
    if is_endpoint(model.path):
        yield f"{place}.path: {model.path} is an endpoint, and a run loads weights; give a directory or a hub id"
    elif not (Path(model.path).is_dir() or ":" in model.path or _HUB_ID.fullmatch(model.path)):
        yield f"{place}.path: {model.path}: there is no such directory, and it is no hub id"
    else:
        yield from _refusal(f"{place}.path", _check_files, model)


def _check_files(model: Model) -> None:
    """Look at a model's files where they are on this machine, without loading weights."""
    directory = own_directory(model.path) or find_snapshot(model.path, model.revision, code=model.trust_remote_code)
    if directory is not None:
        check_own_code(model, directory)


def _check_engine_args(place: str, model: Model) -> Iterator[str]:
    if model.engine == "vllm":
        yield from _refusal(f"{place}.engine_args", check_engine_args, model)


def _check_experts(settings: Settings) -> Iterator[str]:
    names = {f"experts.{n}.name": expert.name for n, expert in enumerate(settings.experts)}
    yield from _repeated(names)
    yield from _alike(names)
    for n, expert in enumerate(settings.experts):
        place = f"experts.{n}"
        yield from _refusal(f"{place}.template", _fill_template, expert)
        yield from _refusal(f"{place}.observer", _fill_observer, expert)
        refusals = list(_refusal(f"{place}.kind", EXPERT_KINDS.__getitem__, expert.kind))
        unlocated: list[str] = []
        if not refusals and EXPERT_KINDS[expert.kind].loads_weights(expert):
            unlocated = list(_check_weights(place, expert))
            yield from unlocated
            yield from _refusal(f"{place}.engine", ENGINES.__getitem__, expert.engine)
            yield from _check_engine_args(place, expert)
        if not refusals and not unlocated:
            refusals = list(_refusal(f"{place}.path", EXPERT_KINDS[expert.kind].check, expert))
        yield from refusals
        # Elsewhere the key is on the cluster's nodes.
        if expert.endpoint is not None and not refusals and is_private(settings.cluster):
            yield from _refusal(f"{place}.endpoint", _open_client, expert)


def _fill_template(expert: Expert) -> None:
    testimony = "" if expert.reads == "testimony" else None
    _fill(expert.template, lambda: expert.write("", "", testimony), "{caption} and {question}")


def _fill_observer(expert: Expert) -> None:
    _fill(expert.observer, lambda: expert.observer.format(testimony=""), "{testimony}")


def _fill(template: str, fill: Callable[[], str], fields: str) -> None:
    try:
        fill()
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f"{template!r} cannot be filled in ({error}); write {fields}") from None


def _open_client(expert: Expert) -> None:
    """Open the client of an endpoint, which asks for the key but connects to nothing."""
    assert expert.endpoint is not None
    endpoint = expert.endpoint
    ChatClient(endpoint.url, endpoint.api_key_env, endpoint)


def _check_benchmarks(settings: Settings, final: bool) -> Iterator[str]:
    names = {f"benchmarks.{n}.name": _suite_name(benchmark.name) for n, benchmark in enumerate(settings.benchmarks)}
    yield from _repeated(names)
    if final and not settings.benchmarks:
        yield "benchmarks: there is none, so there is no test data to evaluate on; name one with its final_path"
    for n, benchmark in enumerate(settings.benchmarks):
        place = f"benchmarks.{n}"
        yield from _refusal(f"{place}.name", SUITES.__getitem__, benchmark.name)
        yield from _unrated(f"{place}.protocols", benchmark)
        yield from _missing(f"{place}.path", benchmark.path)
        if final and benchmark.final_path is None:
            yield f"{place}.final_path: {benchmark.name} has none, so there is no test data to evaluate on; name it"
        if final or settings.data.decontaminate:  # test data are screened for too
            yield from _missing(f"{place}.final_path", benchmark.final_path)


def _unrated(place: str, benchmark: Benchmark) -> Iterator[str]:
    """Yield that a benchmark is not asked by a protocol, if it is one that is there."""
    try:
        refuse_unrated(SUITES[benchmark.name], benchmark.protocols)
    except SettingsError:  # told of where names are looked up
        return
    except UserError as error:
        yield f"{place}: {error}"


def _suite_name(name: str) -> str:
    """Return the name that a benchmark has in results, whatever the settings call it by."""
    try:
        return SUITES[name].name
    except SettingsError:  # told of where names are looked up
        return name


def _check_router(settings: Settings) -> Iterator[str]:
    router = settings.router
    if settings.has_labels:
        return
    policy: str = router.policy
    if policy == "target_precision":
        if router.fallback is None:
            yield (
                "router.policy: target_precision is certified on labels, and no source has any; declare one with "
                "labels: true, set router.fallback, or choose another policy"
            )
        policy = router.fallback or policy
    if policy != "label_model" and router.combination in ("learned", "weighted"):
        yield (
            f"router.combination: {router.combination} is fitted on labels, and no source has any; declare one with "
            "labels: true, or use mean"
        )


def _check_training(settings: Settings) -> Iterator[str]:
    if all(source.labels for source in settings.data.sources):
        yield "data.sources: every source has labels, so there is nothing to learn from; add one without"
    yield from _check_judge(settings)
    yield from _check_phases(settings)
    yield from _check_rules(settings)


def _check_rules(settings: Settings) -> Iterator[str]:
    for name in settings.select.rules:
        refusals = list(_refusal("select.rules", RULES.__getitem__, name))
        yield from refusals
        if not refusals and RULES[name].reads_answers and not settings.sample.answers:
            yield f"select.rules: {name} reads answers that are not asked for; set sample.answers: true"


def _check_judge(settings: Settings) -> Iterator[str]:
    """Yield why the judge cannot be trained or served; one of the hub that is not here is looked at when it is."""
    judge = settings.judge
    if judge.scoring is not None:
        yield f"judge.scoring: {judge.scoring} is for judges of `carevl evaluate`; a run trains one that writes"
    if not list(_check_weights("judge", judge)):  # told of with the weights
        yield from _refusal(
            "judge.path", lambda judge: check_judge(judge.path, judge.revision, code=judge.trust_remote_code), judge
        )
    if judge.serve == "adapter" and judge.engine == "vllm" and (unserved := find_unserved(settings)):
        yield (
            f"judge.serve: vllm does not compute adapters of {unserved} as they are trained; use judge.serve: merged, "
            "or judge.engine: transformers"
        )


def _check_phases(settings: Settings) -> Iterator[str]:
    phases: dict[str, Training] = {"sft": settings.sft, "dpo": settings.dpo}
    for phase, training in phases.items():
        if training.dev_pairs and not settings.has_labels:
            yield (
                f"{phase}.dev_pairs: no source has labels; declare one with labels: true, or set {phase}.dev_pairs to 0"
            )
        if training.zero.offload_optimizer and training.zero.stage == 0:
            yield f"{phase}.zero.offload_optimizer: needs {phase}.zero.stage 1 or more"
        if training.tracker != "none":
            yield from _refusal(f"{phase}.tracker", _check_tracker, training)
        if training.base_bits is not None:
            yield from _refusal(phase, _check_bitsandbytes, training)


def _check_tracker(training: Training) -> None:
    from carevl.training.trackers import check_tracker

    check_tracker(training.tracker)


def _check_bitsandbytes(training: Training) -> None:
    from carevl.training.quantized import check_bitsandbytes

    del training
    check_bitsandbytes()


def _refusal(place: str, look_up: Callable[[Any], object], value: Any) -> Iterator[str]:
    """Yield why a value is refused, if it is."""
    try:
        look_up(value)
    except (UserError, OSError, ValueError) as error:
        yield f"{place}: {error}"


def _repeated(names: Mapping[str, str], hint: str = "") -> Iterator[str]:
    """Yield a line for every setting that gives a name which an earlier one gives.

    Args:
        names: the setting to the name.
    """
    first: dict[str, str] = {}
    for place, name in names.items():
        if name in first:
            yield f"{place}: {name} is also {first[name]}; give each a name of its own" + (f" ({hint})" if hint else "")
        first.setdefault(name, place)


def _alike(names: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for every name that is an earlier one in other letter case: not every file system tells them apart.

    Args:
        names: as for `_repeated`.
    """
    first: dict[str, tuple[str, str]] = {}
    for place, name in names.items():
        earlier, before = first.setdefault(name.casefold(), (place, name))
        if before != name:
            yield f"{place}: {name} is {before} of {earlier} in other letter case, and both become paths; rename one"


def _missing(place: str, path: str | None) -> Iterator[str]:
    """Yield that nothing is at a path. What a scheme draws (`miniworld:…`) or a bucket holds is looked up later."""
    if path is None or "://" in path:
        return
    refusals = list(_refusal(place, split_scheme, path))
    yield from refusals
    if not refusals and split_scheme(path) is None and not Path(path).exists():
        yield f"{place}: {path}: no such file or directory"
