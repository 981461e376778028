"""Training on one worker: the engine, one step, what a checkpoint holds, and the export."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from carevl.errors import UserError
from carevl.models.device import device
from carevl.models.flex_attention import FLEX
from carevl.models.judge_files import load_processor
from carevl.models.locate import Weights
from carevl.models.own_code import code_arguments
from carevl.models.packing import Packed, row_tokens
from carevl.models.prompts import ask_as
from carevl.models.tree_attention import TREES, attention_of, set_attention
from carevl.settings.asking import Asking
from carevl.settings.training import Packing, Training
from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.listing import describe, describe_problems, find_problems
from carevl.training.attention import find_flaw
from carevl.training.engine import deepspeed_config, gather_where_read, is_bare, zero_stage
from carevl.training.features import compute_features
from carevl.training.items import Items
from carevl.training.judge import (
    TrainedJudge,
    export,
    load_judge,
    restore_positions,
)
from carevl.training.plain import Plain
from carevl.training.record import ABOUT
from carevl.training.reference import compute_references
from carevl.training.schedule import MicroBatch, Schedule, micro_batches
from carevl.training.steps import Objective, all_gather, sum_shares
from carevl.training.trainable import make_trainable
from carevl.training.trial import try_packing
from carevl.training.validation import DEV

_TAG = "state"


@dataclass(frozen=True)
class WorkerConfig:
    """The configuration that all workers have in common. `data` and `out` are directories that all of them see."""

    base: Weights
    data: Path
    out: Path
    schedule: Schedule
    training: Training
    adapter: Path | None = None
    """An adapter that the judge begins with, besides the one that is trained."""
    asking: Asking | None = None
    """How prompts are written; None: as carevl asks."""

    @property
    def judge(self) -> Path:
        """The directory of the judge that training begins with, on this node."""
        return self.base.directory


class Loop:
    """The training of `config` on worker `rank` of `world`, inside an initialised process group."""

    def __init__(self, config: WorkerConfig, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.items = Items.open(config.data)
        self.processor = ask_as(load_processor(config.judge), config.asking)
        self.engine = self._build_engine()
        self.packing, reason = self._choose_packing()
        self.features = compute_features(self, config.data / "features")
        reason = reason or self._check_attention()
        self.remarks = {} if reason is None else {"fallback": reason}
        """What the log says of every step."""
        if config.training.spreads_weights and "dpo" in self.items.phases:
            self.items = self.items.with_references(compute_references(self, config.data / "reference.json"))

    def _build_engine(self) -> Any:
        import deepspeed
        from transformers import AutoConfig, get_scheduler
        from transformers.integrations import HfDeepSpeedConfig

        from carevl.training.state_files import StateFiles  # it imports DeepSpeed

        training = self.config.training
        language = AutoConfig.from_pretrained(self.config.judge, **code_arguments()).get_text_config()
        configuration = deepspeed_config(training, language.hidden_size)
        # Under ZeRO 3, from_pretrained spreads the weights while it loads them, if this object is alive.
        spread = HfDeepSpeedConfig(configuration) if training.spreads_weights else None
        torch.manual_seed(training.seed)
        model = load_judge(self.config.judge, training.dtype, training.base_bits)
        del spread  # adapters are not spread before `initialize`
        if training.spreads_weights:
            restore_positions(model)
        torch.manual_seed(training.seed)  # loading may draw numbers, and more of them under ZeRO 3
        self.trained = make_trainable(model, training, self.config.adapter)
        self.judge = TrainedJudge(model).train()
        self.weights = [weight for weight in self.judge.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            self.weights, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        steps = self.config.schedule.steps
        all_gather(None, self.world)  # loading takes one worker longer than another, and NCCL does not wait for ever
        name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
        # The first step of a warm-up has a rate of zero, so that one of a single step would teach nothing.
        rates = get_scheduler(name, optimizer, min(math.ceil(training.warmup * steps), steps - 1), steps)
        engine, *_ = deepspeed.initialize(
            model=self.judge, optimizer=optimizer, lr_scheduler=rates, config=configuration
        )
        if is_bare(training) and self.world == 1:
            # There is nobody to add up with, and it copies every gradient twice.
            engine.enable_backward_allreduce = False
        engine.checkpoint_engine = self.state_files = StateFiles()
        return engine

    def _choose_packing(self) -> tuple[Packing, str | None]:
        """Try the judge's packing on two short items; return how items are computed, and why not as was wanted."""
        if self.config.training.packing == "plain":
            return "plain", None
        self.engine.eval()
        with gather_where_read(self.engine):
            trial = try_packing(self.judge.model, self.processor)
        self.engine.train()
        reason = next((reason for reason in all_gather(trial.reason, self.world) if reason is not None), None)
        return ("shared" if reason is None else "plain"), reason

    def _check_attention(self) -> str | None:
        """Try FlexAttention on the first micro-batch; go back to attention block by block where it fails."""
        if attention_of(self.judge.model) != FLEX:
            return None
        [(_, packed)] = self.prefetch(self.shard(self.config.schedule.step(0))[:1])
        if isinstance(packed, Plain):
            return None
        flaws = all_gather(find_flaw(self.judge.model, packed), self.world)
        flaw = next((flaw for flaw in flaws if flaw is not None), None)
        if flaw is not None:
            set_attention(self.judge.model, TREES)
            flaw = f"FlexAttention does not serve here, so attention goes block by block: {flaw}"
        return flaw

    def step(self, number: int) -> Mapping[str, Any]:
        """Take a step and return its facts, the same on every worker but for times.

        The loss and its terms are those before the step. When `broken` names items, their loss was not a number, and
        no weight was changed.
        """
        started = time.monotonic()
        training, items = self.config.training, self.config.schedule.step(number)
        objective = Objective.of(training.dpo, self.items, items)
        mine = self.shard(items)
        torch.manual_seed(hash((training.seed, number, self.rank)))  # dropout is the same after a resume
        parts, padded = [], 0
        seconds = dict.fromkeys(("data", "forward", "backward", "optimiser"), 0.0)
        clock = _Clock(seconds, started)
        for n, (batch, packed) in enumerate(self.prefetch(mine)):
            clock.lap("data")
            self.engine.set_gradient_accumulation_boundary(n == len(mine) - 1)
            share, sums = objective.compute_share(self.engine(packed), self.items, batch.items)
            clock.lap("forward")
            # DeepSpeed averages over workers; the shares of a step have to be added up.
            self.engine.backward(share * (batch.weight * self.world))
            clock.lap("backward")
            padded += packed.ids.numel()
            parts += [sums] if batch.weight else []
        gathered = all_gather((parts, padded), self.world)
        facts = dict(sum_shares([part for worker, _ in gathered for part in worker]))
        if facts["broken"]:
            facts["broken"] = [self.items.ids[i] for i in self._find_broken(facts["broken"])]
        else:
            facts["learning_rate"] = self.engine.get_lr()[0]
            facts["gradient_norm"] = self._update()
        clock.lap("optimiser")
        tokens = sum(self.items.lengths[i] for i in items)
        counts = {"items": len(items), "tokens": tokens, "padded_tokens": sum(n for _, n in gathered)}
        return {**facts, **counts, "seconds": {name: round(value, 6) for name, value in seconds.items()}}

    @property
    def held_out(self) -> Sequence[int]:
        """The items that are not trained on; they stand behind those that are."""
        schedule = self.config.schedule
        return range(schedule.n_items + schedule.n_replay, len(self.items) - len(self.dev))

    @cached_property
    def dev(self) -> Sequence[int]:
        """The labelled pairs, in both orders; they stand behind all others."""
        return range(len(self.items) - self.items.phases.count(DEV), len(self.items))

    def _find_broken(self, broken: Sequence[int]) -> list[int]:
        """Return those of `broken` that have no finite loss when they are computed alone.

        Within a packed row one NaN spoils the others, so that an item's neighbours look broken, too.
        """

        def finite(i: int) -> bool:
            [(_, packed)] = self.prefetch([MicroBatch([i])])
            with torch.no_grad():
                return bool(torch.isfinite(self.engine(packed)).all())

        return [i for i in broken if not finite(i)] or list(broken)

    def _update(self) -> float:
        """Let the optimiser step; return the norm of the gradient before clipping."""
        training = self.config.training
        if not is_bare(training):
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        norm = torch.nn.utils.clip_grad_norm_(self.weights, training.gradient_clip)
        self.engine.step()
        return float(norm)

    def shard(self, items: Sequence[int]) -> list[MicroBatch]:
        """Return this worker's micro-batches of items."""
        most = row_tokens(self.judge.model, self.packing, self.config.training.batch_tokens)
        kinds = self.items.n_images
        return micro_batches(items, self.items.shapes, self.world, most, self.packing, kinds=kinds)[self.rank]

    def prefetch(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, Packed | Plain]]:
        """Yield collated micro-batches on the device; the next ones are read ahead."""
        model = self.judge.model
        for batch, packed in self.items.prefetch(batches, self.processor, model, self.packing, self.features):
            yield batch, packed.to(self.engine.device)

    def save(self, directory: str, steps_done: int) -> None:
        """Write this worker's part of a checkpoint: trained weights, optimiser, schedule, position in the data."""
        state = {"steps_done": steps_done}
        self.state_files.begin()
        self.engine.save_checkpoint(directory, _TAG, state, save_latest=False, exclude_frozen_parameters=True)
        written = describe(Path(directory), [str(file.relative_to(directory)) for file in self.state_files.written])
        files = {name: facts for listing in all_gather(written, self.world) for name, facts in listing.items()}
        if self.rank == 0:
            for script in Path(directory).glob("*.py"):
                script.unlink()  # DeepSpeed's, for pickles
            (Path(directory) / ABOUT).write_bytes(encode_json({"workers": self.world, "files": files}))

    def find_problem(self, directory: Path) -> str | None:
        """Return why a checkpoint is not what was written, the same on every worker; None where it is.

        Its files are shared out, and read to their ends.
        """
        problem = None
        try:
            files = read_json(directory / ABOUT, "").get("files")
            if files is None:
                problem = "an earlier version wrote it as pickles, which may run code and are not loaded"
            else:
                mine = {name: files[name] for name in sorted(files)[self.rank :: self.world]}
                problems = find_problems(directory, mine, verify=True)
                problem = describe_problems(problems) or None
                for name in () if problem else mine:
                    self.state_files.check(directory / name)
        except (DamagedError, OSError, ValueError) as error:
            problem = str(error)
        return next((each for each in all_gather(problem, self.world) if each is not None), None)

    def load(self, directory: str) -> int:
        """Go back to a checkpoint; return the number of steps done.

        When another number of workers made it, ZeRO 1 and 2 forget the optimiser's moments, which were spread.

        Raises:
            UserError: another number of workers made it under ZeRO 3, where weights were spread, too.
        """
        stage = zero_stage(self.config.training)
        workers = read_json(Path(directory) / ABOUT, "")["workers"]
        if workers != self.world and stage == 3:
            raise UserError(
                f"{directory} was made by {workers} workers under ZeRO 3, and {self.world} cannot take it up; "
                f"set workers.count to {workers}, or begin in another directory"
            )
        _, state = self.engine.load_checkpoint(
            directory, _TAG, load_module_strict=False, load_optimizer_states=stage == 0 or workers == self.world
        )
        return int(state["steps_done"])

    def export(self) -> None:
        """Write what was learned below `out`; every worker has to call it, and nobody waits for worker 0 to write."""
        state = None
        # Under ZeRO 3 no worker has all weights: they are gathered under the names that save_pretrained uses.
        if self.config.training.spreads_weights:
            adapters = self.config.training.lora is not None
            gathered = self.engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapters) or {}
            prefix = "base_model.model." if adapters else ""
            state = {prefix + name.removeprefix("model."): weight for name, weight in gathered.items()}
        if self.rank == 0:
            export(self.trained, state, self.config.base, self.config.out, self.config.adapter)


class _Clock:
    """A stopwatch that adds laps up by name, in seconds."""

    def __init__(self, seconds: dict[str, float], last: float) -> None:
        self.seconds, self.last = seconds, last

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a name; what a GPU still computes is waited for."""
        if device() == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds[name] += now - self.last
        self.last = now
