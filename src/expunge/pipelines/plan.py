"""`expunge plan`: memory and time of a training for several numbers of ranks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch

from expunge.config.describe import rows_of
from expunge.config.job import ASSUMED, Lengths, job_of, optimizer_steps
from expunge.config.procedure import stages_of
from expunge.config.shape import shape_of
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.footprint import GIB, Parts, gib, peak
from expunge.core.job import OFFLOADED, Job, Placement
from expunge.core.plan import Forecast, Line
from expunge.core.remedies import first_that_fits
from expunge.core.step_cost import Figure, Speed, cost
from expunge.data.datasets import Dataset
from expunge.lm import runtime
from expunge.methods.objective import Objective, build_objective, objective_of
from expunge.models import memory_tracker
from expunge.models.adapter_args import AdapterArgs
from expunge.models.base_model import read_config_of
from expunge.models.weightless import without_weights
from expunge.optim.build import build_rules, optimizer_factory, rules_of
from expunge.pipelines.assemble import sides_of, text_of
from expunge.training.arguments import training_arguments
from expunge.training.setup import checkpoint_activations, optimizer_of
from expunge.training.tracked_memory import measured_seconds, track

log = logging.getLogger(__name__)

RANKS = (1, 2, 4, 8, 16, 64)
ASSUMED_MEMORY = 80 * GIB


def run(
    cfg: Config,
    *,
    limit: Figure | None = None,
    ranks: Sequence[int] = (),
    engine: Placement | None = None,
    node: int = 8,
    formulas: bool = False,
    measure: bool = False,
    speed: Speed | None = None,
) -> Forecast:
    """Plan a training.

    Args:
        cfg: the configuration of a training.
        limit: bytes of one GPU; None = of the GPU of this machine, else 80 GiB are assumed.
        ranks: numbers of ranks; empty = 1 to 64, and the number of this launch.
        engine: how weights are placed on several ranks; None = as in the configuration.
        node: ranks of a node.
        formulas: use only the formulas.
        measure: time three real steps on this machine.
        speed: speed of the machines.

    Raises:
        UserError: nothing is trained, the model's shape is unknown, or the step to measure does not fit here.
    """
    if "trainer" not in cfg.tree:
        raise UserError(
            f"mode={cfg.get('mode')}: nothing is trained, so there is nothing to plan",
            "plan a training: `expunge plan unlearn ...` or `expunge plan train ...`",
        )
    limit, speed, lines = limit or _memory_here(), speed or Speed(), []
    with warnings.catch_warnings():
        # Libraries warn about calls between their own versions.
        warnings.simplefilter("ignore", FutureWarning)
        planner = Planner(cfg, engine, node)
        if measure:
            speed = planner.measured(speed)
        why_not = "" if formulas else memory_tracker.why_not()
        if why_not:
            planner.notices.append(f"memory by formulas: {why_not}")
        for count in ranks or sorted({*RANKS, cfg.ranks}):
            parts = None if formulas or why_not else planner.tracked(count)
            lines.append(planner.line(count, parts, limit.value, speed))
    model, notices = str(cfg.get("model.model_args.pretrained_model_name_or_path")), tuple(planner.notices)
    return Forecast(model, planner.job, limit, planner.described_lengths(), speed, tuple(lines), notices)


def _memory_here() -> Figure:
    """The memory of this machine's GPU; without one, 80 GiB."""
    if torch.cuda.is_available():
        return Figure(float(torch.cuda.get_device_properties(0).total_memory), "measured")
    return Figure(float(ASSUMED_MEMORY))


class Planner:
    """Finds the needs of one configuration.

    Args:
        cfg: the configuration of a training.
        engine: see `run`.
        node: ranks of a node.

    Attributes:
        job: what determines memory and time.
        notices: remarks for the user.
    """

    def __init__(self, cfg: Config, engine: Placement | None, node: int) -> None:
        self.cfg, self.notices = cfg, list(cfg.notices)
        self.stages = stages_of(cfg)
        if self.stages:
            self.notices.append("a procedure is planned as one training with the values of trainer.args")
        self.config = read_config_of(cfg.section("model.model_args"))
        shape = shape_of(self.config.to_dict())
        if shape is None:
            raise UserError(
                f"the config.json of {cfg.get('model.model_args.pretrained_model_name_or_path')} does not"
                " state the model's shape",
                "`plan` needs the numbers of layers and heads, the hidden size and the vocabulary size",
            )
        self.sides, self.tokenizer = self._sides()
        self.lengths = lengths_of(self.sides)
        job = job_of(cfg, shape, self.lengths)
        if job.adapter is None:
            whole = sum(weight.numel() for weight in self._model(job)[0].parameters())
            job = job_of(cfg, replace(shape, parameters=whole), self.lengths)
        self.job = replace(job, engine=engine or job.engine, node=node)
        self._alone: Parts | None = None

    def described_lengths(self) -> dict[str, str]:
        """The lengths of the rows of each side, for the user."""
        unlearns = self.cfg.get("mode") == "unlearn"
        return {
            load.name if unlearns else "train": f"{load.tokens} tokens, {load.labels // load.rows} labels"
            f" ({self.lengths.get(load.name, ASSUMED).source})"
            for load in self.job.loads
        }

    def line(self, ranks: int, tracked: Parts | None, limit: float, speed: Speed) -> Line:
        """The plan for a number of ranks."""
        job = self.job
        parts = tracked or peak(job, ranks)
        steps = optimizer_steps(self.cfg, self._rows(), ranks)
        fixed = None if parts.total <= limit else first_that_fits(job, ranks, limit)
        joint = replace(job, sequential=False) if job.parts(ranks) > 1 and len(job.passes) > 1 else None
        return Line(
            ranks,
            parts,
            tracked is not None,
            cost(job, ranks, speed),
            None if steps is None else steps[0],
            None if fixed is None else (fixed[0].name, fixed[1].total),
            None if joint is None else (peak(joint, ranks).total, cost(joint, ranks, speed).seconds),
        )

    def tracked(self, ranks: int) -> Parts | None:
        """The peak by the trackers; None, with a notice, if they cannot follow the step."""
        job = self.job
        if self.cfg.get("model.adapter.type") == "qlora":
            return self._not_tracked("the trackers do not support weights in 4 bits")
        if job.engine == OFFLOADED and ranks > 1:
            return self._not_tracked("the trackers do not support offloaded weights")
        try:
            if job.parts(ranks) > 1:
                return self._track(ranks)
            if self._alone is None:
                self._alone = self._track(1)
        except (
            Exception
        ) as error:  # private modules of torch: if anything fails there, the formulas still work
            log.debug("tracking failed", exc_info=True)
            first_line = (str(error).splitlines() or [""])[0]
            return self._not_tracked(f"{type(error).__name__}: {first_line[:200]}")
        buckets = peak(job, ranks).gradients - peak(job, 1).gradients if ranks > 1 else 0.0
        return replace(self._alone, gradients=self._alone.gradients + buckets)

    def measured(self, speed: Speed) -> Speed:
        """The speed of this machine in three real steps on random weights.

        Raises:
            UserError: the training does not fit this machine.
        """
        where, job = runtime.device(), self.job
        free = torch.cuda.mem_get_info()[0] if where.type == "cuda" else psutil.virtual_memory().available
        needed = peak(job).total
        if needed > free:
            raise UserError(
                f"--measure needs {gib(needed)} GiB, and {where.type} has {gib(free)} GiB free",
                "use smaller batches or an adapter, or measure on the machine that will run the training",
            )
        model, objective = self._model(job, for_gpu=False, where=where)
        seconds = measured_seconds(job, model, objective, self._stepping, self._args().max_grad_norm)
        reached = Figure(cost(job, 1, speed).operations / seconds, f"measured on this {where.type}")
        # The measured time already contains the latency.
        return replace(speed, flops=reached, latency=Figure(0.0, reached.source))

    def _track(self, ranks: int) -> Parts:
        model, objective = self._model(self.job)
        name = str(self.cfg.get("trainer.optimizer.handler") or self.cfg.get("trainer.args.optim"))
        # bitsandbytes needs a GPU to step.
        stepping = None if any(part in name for part in ("8bit", "paged", "bnb")) else self._stepping
        return track(self.job, ranks, model, objective, stepping, self._args().max_grad_norm)

    def _model(self, job: Job, *, for_gpu: bool = True, where: Any = "meta") -> tuple[Any, Objective]:
        """The model and the objective: with random weights on a device, without weights on `meta`."""
        adapter = AdapterArgs.parse(self.cfg.section("model.adapter")) if job.adapter is not None else None
        widths = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
        dtype = widths[round(job.frozen_width) if adapter is not None else job.master_width]
        masked = job.attention_mask and any(load.padded for load in job.loads)
        with torch.device(where):
            model = without_weights(self.config, adapter, dtype=dtype, masked=masked, for_gpu=for_gpu)
            objective = (
                build_objective("expunge.methods.finetune:finetune", {})
                if self.stages
                else objective_of(self.cfg.bound)
            )
            objective.prepare(model, int(self.cfg.get("seed", 0)), self.tokenizer)
        if job.checkpointing:
            checkpoint_activations(model, self._args())
        return model, objective

    def _stepping(self, model: Any) -> tuple[torch.optim.Optimizer, list[Any]]:
        optimizer = optimizer_of(model, self._args(), optimizer_factory(self.cfg.bound))
        return optimizer, build_rules(rules_of(self.cfg.bound), optimizer)

    def _args(self) -> Any:
        args = self.cfg.section("trainer.args")
        args = {key: value for key, value in args.items() if key not in ("bf16", "fp16")}
        return training_arguments({**args, "eval_strategy": "no", "report_to": "none"}, "unused", 1)

    def _not_tracked(self, why: str) -> Parts | None:
        """Nothing, and a notice with the reason."""
        notice = f"memory by formulas: {why}"
        if notice not in self.notices:
            self.notices.append(notice)
        return None

    def _sides(self) -> tuple[Mapping[str, Dataset], Any]:
        """The rows by side, and the tokenizer; if they are not found, no sides and no tokenizer."""
        try:
            text = text_of(self.cfg, self.notices)
            needed = () if self.stages else objective_of(self.cfg.bound).sides
            return sides_of(self.cfg, text, needed), text.tokenizer
        except UserError as error:
            self.notices.append(f"the lengths of the rows are assumed: {error.faults[0].message}")
            return {}, None

    def _rows(self) -> int | None:
        unlearns = self.cfg.get("mode") == "unlearn"
        side = str(self.cfg.get("data.anchor", "forget")) if unlearns else "retain"
        if side in self.sides:
            return len(self.sides[side])
        return rows_of(self.cfg, side if unlearns else "train")


def lengths_of(sides: Mapping[str, Dataset]) -> dict[str, Lengths]:
    """The lengths of the rows of each side."""
    encoded = {name: data.encoded for name, data in sides.items()}
    if "forget" in sides and sides["forget"].alternates is not None:
        encoded["alternate"] = sides["forget"].alternates
    return {
        name: Lengths(
            tuple(sorted((len(item.input_ids) for item in items), reverse=True)),
            tuple(sorted((sum(item.label_mask[1:]) for item in items), reverse=True)),
            "measured",
        )
        for name, items in encoded.items()
        if items
    }
