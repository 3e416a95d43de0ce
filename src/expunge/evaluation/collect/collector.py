"""The collector protocol. In this room only collectors call the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from expunge.evaluation.collect.decoding import pad_id_of
from expunge.evaluation.tables import Table
from expunge.evaluation.views import View
from expunge.lm import runtime
from expunge.models.parallel import Parallel


@dataclass
class Cost:
    """What a pass cost.

    Attributes:
        examples: requested, over all views.
        unique: computed, equal ones once.
        forward_tokens: through the model, padding left out.
        padded_tokens: through the model, padding included.
        generated_tokens: written by the model.
        backward_tokens: of the gradients.
        seconds: wall-clock.
    """

    examples: int = 0
    unique: int = 0
    forward_tokens: int = 0
    padded_tokens: int = 0
    generated_tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and how it is run.

    Attributes:
        model: causal language model, wrapped or not.
        tokenizer: of the model.
        suite: the suite's section of the configuration.
        compute_dtype: autocast to it.
        parallel: how the rows are split over processes.
    """

    model: Any
    tokenizer: Any
    suite: Mapping[str, Any] = field(default_factory=dict)
    compute_dtype: torch.dtype | None = None
    parallel: Parallel = field(default_factory=Parallel.here)

    @property
    def device(self) -> torch.device:
        """Where the model computes; split weights may be elsewhere between passes."""
        where: torch.device = next(iter(self.model.parameters())).device
        return self.parallel.device if self.parallel.sharded else where

    @property
    def dtype(self) -> str:
        """Dtype of the weights and of the computation."""
        return f"{next(iter(self.model.parameters())).dtype}/{self.compute_dtype}"

    @property
    def pad_id(self) -> int:
        """Token to pad with."""
        return pad_id_of(self.tokenizer)

    @property
    def batch_size(self) -> int:
        """Rows of a batch, as the suite counts them."""
        return int(self.suite.get("batch_size", 32))

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return runtime.autocast(self.device, self.compute_dtype)


class Request(NamedTuple):
    """One table that is wanted: the view with the examples, and the settings of the collector."""

    view: View
    settings: Mapping[str, Any]


class Collector(Protocol):
    """Runs the model on views and writes a table for each.

    A class without state. A metric asks for its table by the type of a parameter. A table depends on the
    view, the model and the collector's settings; equal requests are computed once. Validation reads the
    attributes from the source of the class, so each is a literal or the name of a class.

    Attributes:
        kind: name of its tables, in the cache and in the costs.
        table: type of its tables.
        of_metric: options of a metric that are also settings of the collector.
        of_suite: keys of the suite's section that are settings, with their defaults.
        section: a section whose keys are settings: the suite's, and the metric entry's, which wins.
        settings: a dataclass whose fields are the keys of `section`; validation checks their types. None =
            any keys.
    """

    kind: ClassVar[str]
    table: ClassVar[type[Table]]
    of_metric: ClassVar[tuple[str, ...]] = ()
    of_suite: ClassVar[Mapping[str, Any]] = {}
    section: ClassVar[str | None] = None
    settings: ClassVar[type | None] = None

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[Table | Absent]:
        """Yield the requested tables in their order, each as soon as it is complete; the caller saves it.

        With several ranks, all call this with the same requests. Each may do a part of the work. Each must
        make the same number of collective calls, whatever its number of rows. Rank 0 has the whole tables.

        Args:
            subject: the model; its training mode is restored.
            requests: at least one.
            cost: counts are added to it.

        Returns:
            A table for each request, or why there is none.
        """
        ...


@dataclass(frozen=True)
class Absent:
    """A table that could not be made."""

    reason: str


@contextmanager
def running(model: Any, cost: Cost, *, train: bool = False, gradients: bool = False) -> Iterator[None]:
    """Dropout and autograd as given for a while; then the model's own mode. The time is added to the cost."""
    started, was_training = time.monotonic(), model.training
    model.train(train)
    parallel = Parallel.of(model)
    # Buffers for gathered weights are kept, and a later backward pass cannot use those of inference mode.
    without = torch.no_grad if parallel.sharded else torch.inference_mode
    try:
        with torch.enable_grad() if gradients else without():
            yield
    finally:
        parallel.reshard(model)
        model.train(was_training)
        cost.seconds += time.monotonic() - started


def settings_of(
    collector: Collector, suite: Mapping[str, Any], entry: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a collector's table for a metric: `entry` is its section, `options` has defaults."""
    settings = {key: suite.get(key, default) for key, default in collector.of_suite.items()}
    if collector.section is not None:
        settings |= {**(suite.get(collector.section) or {}), **(entry.get(collector.section) or {})}
    return settings | {key: options[key] for key in collector.of_metric if key in options}
