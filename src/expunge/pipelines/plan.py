"""`expunge plan`: memory and time of a training for several numbers of ranks."""

from __future__ import annotations

import logging
import os
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
from expunge.core.footprint import Parts, peak
from expunge.core.job import Engine, Job
from expunge.core.plan import Line, Plan
from expunge.core.remedies import first_that_fits
from expunge.core.step_cost import Speed, cost
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

GIB = 2**30
RANKS = (1, 2, 4, 8, 16, 64)
ASSUMED_MEMORY = 80 * GIB


def run(
    cfg: Config,
    *,
    gpu_memory: float | None = None,
    ranks: Sequence[int] = (),
    engine: Engine | None = None,
    formulas: bool = False,
    measure: bool = False,
    speed: Speed | None = None,
) -> Plan:
    """Plan a training.

    Args:
        cfg: a configuration that trains.
        gpu_memory: GiB of one GPU; None = that of the GPU here, else 80, which is said.
        ranks: numbers of ranks; none = 1 to 64 and that of the launch.
        engine: how weights are placed on several ranks; None = as the configuration says.
        formulas: use the formulas alone.
        measure: time three real steps here.
        speed: of the machines.

    Raises:
        UserError: nothing is trained, the model's shape is unknown, or the step to measure does not fit here.
    """
    if "trainer" not in cfg.tree:
        raise UserError(
            "nothing is trained here", "plan a training: expunge plan unlearn ... or plan train ..."
        )
    planner = Planner(cfg, engine)
    notices = planner.notices
    limit, limit_source = _limit(gpu_memory)
    speed = speed or Speed()
    if measure:
        speed = planner.measured(speed)
    why_not = "asked for" if formulas else memory_tracker.why_not()
    if why_not and not formulas:
        notices.append(f"memory by formulas alone: {why_not}")
    lines = []
    for count in ranks or sorted({*RANKS, int(os.environ.get("WORLD_SIZE", "1"))}):
        parts = None if why_not else planner.tracked(count)
        lines.append(planner.line(count, parts, limit, speed))
    job = planner.job
    return Plan(
        str(cfg.get("model.model_args.pretrained_model_name_or_path")),
        job.shape.total,
        job.trained,
        job.reference,
        job.engine,
        limit,
        limit_source,
        {load.name: planner.length(load.name, load.tokens, load.labels // load.rows) for load in job.loads},
        speed,
        tuple(lines),
        tuple(notices),
    )


class Planner:
    """Finds out what one configuration needs.

    Args:
        cfg: a configuration that trains.
        engine: see `run`.
    """

    def __init__(self, cfg: Config, engine: Engine | None) -> None:
        self.cfg, self.notices = cfg, list[str]()
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
        self.job = job if engine is None else replace(job, engine=engine)
        self._alone: Parts | None = None

    def length(self, side: str, tokens: int, labels: int) -> str:
        """What is said of a side's rows."""
        source = self.lengths.get(side, ASSUMED).source
        return f"{tokens} tokens, {labels} labels ({source})"

    def line(self, ranks: int, tracked: Parts | None, limit: float, speed: Speed) -> Line:
        """The plan for some ranks."""
        job, spent = self.job, cost(self.job, ranks, speed)
        parts = peak(job, ranks) if tracked is None else tracked
        steps = optimizer_steps(self.cfg, self._rows(), ranks)
        fixed = None if parts.total <= limit else first_that_fits(job, ranks, limit)
        return Line(
            ranks,
            parts,
            tracked is not None,
            spent.seconds,
            spent.sent,
            job.rows * job.micro_batches * ranks,
            None if steps is None else steps[0],
            None if fixed is None else fixed[0].name,
            None if fixed is None else fixed[1].total,
        )

    def tracked(self, ranks: int) -> Parts | None:
        """The peak by the trackers; None, with a notice, where they cannot follow the step."""
        job = self.job
        if self.cfg.get("model.adapter.type") == "qlora":
            return self._not_tracked("the trackers know no weights in 4 bits")
        if job.engine == "fsdp2_offload" and ranks > 1:
            return self._not_tracked("offloaded weights are counted by formulas")
        try:
            if job.sharded(ranks):
                return self._track(job, ranks)
            if self._alone is None:
                self._alone = self._track(job, 1)
        except Exception as error:  # private modules of torch: whatever they cannot do, the formulas can
            log.debug("tracking failed", exc_info=True)
            return self._not_tracked(
                f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
        buckets = peak(job, ranks).gradients - peak(job, 1).gradients if ranks > 1 else 0.0
        return replace(self._alone, gradients=self._alone.gradients + buckets)

    def measured(self, speed: Speed) -> Speed:
        """What this machine reaches in three real steps on random weights.

        Raises:
            UserError: the training does not fit it.
        """
        where, job = runtime.device(), self.job
        free = torch.cuda.mem_get_info()[0] if where.type == "cuda" else psutil.virtual_memory().available
        needed = peak(job).total
        if needed > free:
            raise UserError(
                f"--measure needs {needed / GIB:.1f} GiB and {where.type} has {free / GIB:.1f} GiB free",
                "measure with smaller batches, with an adapter, or on the machine that will run it",
            )
        model, objective = self._model(job, for_gpu=False, where=where)
        args = self._args()
        seconds = measured_seconds(job, model, objective, self._stepping, args.max_grad_norm)
        return replace(
            speed, flops=cost(job, 1, speed).operations / seconds, source=f"measured on this {where.type}"
        )

    def _track(self, job: Job, ranks: int) -> Parts:
        model, objective = self._model(job)
        stepping = None if self._by_bitsandbytes() else self._stepping
        return track(job, ranks, model, objective, stepping, self._args().max_grad_norm)

    def _model(self, job: Job, *, for_gpu: bool = True, where: Any = "meta") -> tuple[Any, Objective]:
        """The model with random weights on a device, none on `meta`, and the objective prepared with it."""
        adapter = AdapterArgs.parse(self.cfg.section("model.adapter")) if job.adapter is not None else None
        widths = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
        dtype = widths[round(job.frozen_width) if adapter is not None else job.master_width]
        masked = job.attention_mask and any(load.padded for load in job.loads)
        with torch.device(where):
            model = without_weights(self.config, adapter, dtype=dtype, masked=masked, for_gpu=for_gpu)
            objective = (
                build_objective("expunge.methods.finetune:finetune", {})
                if stages_of(self.cfg)
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
        args = {
            key: value
            for key, value in self.cfg.section("trainer.args").items()
            if key not in ("bf16", "fp16")
        }
        return training_arguments({**args, "eval_strategy": "no", "report_to": "none"}, "unused", 1)

    def _by_bitsandbytes(self) -> bool:
        name = str(self.cfg.get("trainer.optimizer.handler") or self.cfg.get("trainer.args.optim"))
        return any(part in name for part in ("8bit", "paged", "bnb"))

    def _not_tracked(self, why: str) -> Parts | None:
        """No parts, and a notice why."""
        notice = f"memory by formulas: {why}"
        if notice not in self.notices:
            self.notices.append(notice)
        return None

    def _sides(self) -> tuple[Mapping[str, Dataset], Any]:
        """The rows by side and the tokenizer, where they are to be had; the sides are none otherwise."""
        try:
            text = text_of(self.cfg, self.notices)
            needed = () if stages_of(self.cfg) else objective_of(self.cfg.bound).sides
            return sides_of(self.cfg, text, needed), text.tokenizer
        except UserError as error:
            self.notices.append(f"lengths of rows are assumed: {error.faults[0].message}")
            return {}, None

    def _rows(self) -> int | None:
        side = str(self.cfg.get("data.anchor", "forget")) if self.cfg.get("mode") == "unlearn" else "retain"
        if side in self.sides:
            return len(self.sides[side])
        return rows_of(self.cfg, side if self.cfg.get("mode") == "unlearn" else "train")


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


def _limit(gpu_memory: float | None) -> tuple[float, str]:
    if gpu_memory is not None:
        return gpu_memory * GIB, "given"
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory), "measured"
    return float(ASSUMED_MEMORY), "assumed"
