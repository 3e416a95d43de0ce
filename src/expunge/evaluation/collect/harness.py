"""Tasks of lm-evaluation-harness, run by its Python API on the loaded model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from expunge.core.errors import MissingExtraError
from expunge.evaluation.collect.collector import Absent, Collector, Cost, Request, Subject, running
from expunge.evaluation.tables import Examples, HarnessTable, as_ints
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)


class Harness(Collector):
    """Accuracy of each document by lm-eval. Every rank runs the whole task; the table is that of rank 0."""

    kind = "harness"
    table = HarnessTable
    of_metric = ("limit", "num_fewshot")

    def collect(
        self, subject: Subject, requests: Sequence[Request], cost: Cost
    ) -> Iterator[HarnessTable | Absent]:
        """Task after task."""
        for view, settings in requests:
            task, folder = str(view.spec.options["task"]), view.spec.options.get("include_path")
            yield collect_harness(subject, task, settings, folder, cost)


def collect_harness(
    subject: Subject, task: str, settings: Mapping[str, Any], include_path: str | None, cost: Cost
) -> HarnessTable | Absent:
    """Run one task: the harness makes the prompts, runs the model and scores each document.

    Settings: `num_fewshot`, worked examples (None = the task's own number); `limit`, documents at most.
    `include_path` is the folder with the user's own tasks.

    Returns:
        Accuracy of each document; or the reason why there is none: the harness is not installed, has no such
        task, or cannot read its data.
    """
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        error = MissingExtraError("lm-eval", "lm-eval", "the harness").faults[0]
        return Absent(f"{error.message}: {error.hint}")
    inner: Any = unwrapped(subject.model)
    try:
        with running(inner, cost, gradients=True), subject.autocast():
            wrapped = HFLM(pretrained=inner, tokenizer=subject.tokenizer, batch_size=subject.batch_size)
            found = evaluator.simple_evaluate(
                model=wrapped,
                tasks=[task],
                task_manager=_tasks(include_path),
                bootstrap_iters=0,
                log_samples=True,
                **{key: settings.get(key) for key in Harness.of_metric},
            )
    except Exception as error:
        # A failed task (no data, no network, an unknown name) must not end the other tasks.
        log.debug("lm-eval task %s", task, exc_info=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        needed = "its data must be in the hub's cache, or the hub must be reachable"
        return Absent(f"lm-eval could not run {task}: {reason[:300]}; {needed}")
    return _table(task, (found or {}).get("samples", {}).get(task) or [])


@cache
def _tasks(include_path: str | None) -> Any:
    """The harness's index of tasks; building it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _table(task: str, samples: Sequence[Mapping[str, Any]]) -> HarnessTable | Absent:
    scored = [sample for sample in samples if sample.get("acc") is not None]
    if not scored:
        return Absent(f"lm-eval reported no accuracy for {task}")
    ids = tuple(f"{task}/{sample['doc_id']}" for sample in scored)
    zero_B = as_ints([0] * len(scored))
    examples = Examples(ids, as_ints(list(range(len(scored)))), zero_B, ("",) * len(scored))
    return HarnessTable(examples, np.array([float(sample["acc"]) for sample in scored]))
