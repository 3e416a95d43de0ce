"""The reference: the model before unlearning, at the lowest cost that the method allows.

Per-token log-probs of the rows never change: they are computed once, stored, and looked up. Only a loss that
reads the whole distribution or hidden states of the reference needs a second model in memory.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from expunge.core.fingerprint import fingerprint
from expunge.core.needs import Need
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.lm import runtime
from expunge.lm.labels import Side, laid_out, on_device
from expunge.lm.packing import token_budgeted_batches
from expunge.models.attention import attention_of
from expunge.models.fingerprint import model_fingerprint
from expunge.models.logp_table import LogpTable
from expunge.models.outputs import SideOutputs, side_outputs, unwrapped
from expunge.models.parallel import Parallel


class Reference(Protocol):
    """The model before unlearning: its cached log-probs, the model with its adapter off, or a frozen copy."""

    def outputs(self, side_name: str, side: Side, /) -> SideOutputs:
        """Outputs of the reference on a side of a batch, in eval mode, without gradient."""


def plan_reference(needs: Iterable[Need]) -> Literal["none", "cached", "frozen"]:
    """The cheapest reference that covers all needs: none, cached log-probs, or a frozen copy of the model."""
    asked = [need for need in needs if need.from_reference]
    if not asked:
        return "none"
    return "cached" if all(need.cacheable for need in asked) else "frozen"


class ModelReference(ABC):
    """A reference that is a model. Create it before training starts and before the model is wrapped.

    Args:
        model: the model before unlearning, with its adapter if it has one.
        autocast_dtype: the dtype in which the trained model computes; the reference computes in the same.
        hidden: regular expression of a module whose output is returned too, or a sequence of them.
        parallel: splits the weights of a copy as it does those of the model; None = they stay whole.

    Raises:
        UserError: this kind of reference is not possible for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        autocast_dtype: torch.dtype | None = None,
        hidden: str | Sequence[str] | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.parallel = Parallel.alone() if parallel is None else parallel
        self.autocast_dtype, self.hidden = autocast_dtype, hidden
        self.model: Any = self._prepared(unwrapped(model))

    def outputs(self, side_name: str, side: Side) -> SideOutputs:
        """Log-probs and logits of a side of a batch; `side_name` is not used."""
        where = side["input_ids"].device
        with self._reading(where), torch.no_grad(), runtime.autocast(where, self.autocast_dtype):
            return side_outputs(self.model, side, hidden=self.hidden)

    def _prepared(self, model: nn.Module) -> nn.Module:
        """The model that is read."""
        return model

    @abstractmethod
    def _reading(self, where: torch.device) -> AbstractContextManager[object]:
        """The context of a forward pass on a device."""


class FrozenCopy(ModelReference):
    """A copy of the model in eval mode, without gradients; arguments as for `ModelReference`.

    It needs the memory of a second model, or about half of that if the model computes in half precision.
    """

    def _prepared(self, model: nn.Module) -> nn.Module:
        copied: Any = copy.deepcopy(model).requires_grad_(False).eval()
        if self.parallel.sharded:
            # All of one dtype: they are gathered together, in the dtype of the computation.
            self.parallel.shard(copied if self.autocast_dtype is None else copied.to(self.autocast_dtype))
        elif self.autocast_dtype is not None:
            _cast_projections(copied, self.autocast_dtype)
        prepared: nn.Module = copied
        return prepared

    @contextmanager
    def _reading(self, where: torch.device) -> Iterator[None]:
        # Split weights may stay on the CPU between passes.
        if next(self.model.parameters()).device != where and not self.parallel.sharded:
            self.model.to(where)
        yield
        self.parallel.reshard(self.model)


def _cast_projections(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of linear layers to the dtype to which autocast would cast them in each pass.

    A weight shared with an embedding is not cast, because autocast does not cast embeddings.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Linear and id(module.weight) not in shared:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))


class CachedReference:
    """Per-token log-probs of the model before unlearning, looked up by the rows of a side."""

    def __init__(self, tables: Mapping[str, LogpTable]) -> None:
        self.tables = dict(tables)

    @classmethod
    def compute(
        cls,
        model: nn.Module,
        views: Mapping[str, Sequence[Encoded]],
        folder: Path,
        *,
        pad_id: int,
        autocast_dtype: torch.dtype | None = None,
        max_tokens: int = 4096,
        parallel: Parallel | None = None,
    ) -> CachedReference:
        """Reuse the tables in `folder` for the same model and rows; compute and store the others.

        Args:
            model: the model before unlearning, not wrapped yet. It computes in eval mode; the modes of its
                modules are restored.
            views: the encoded rows by side.
            folder: `<run>/reference`.
            pad_id: token to pad with.
            autocast_dtype: the dtype in which the trained model computes.
            max_tokens: padded tokens of a forward pass.
            parallel: how the work is split over processes; None = over those that have met, whole weights.

        Returns:
            A reference with these rows; equal on all ranks, which share the work.
        """
        parallel = Parallel.here() if parallel is None else parallel
        key = {
            "model": model_fingerprint(unwrapped(model)),
            # With split weights half precision is everywhere, autocast keeps some layers in float32.
            "dtype": [str(next(model.parameters()).dtype), str(autocast_dtype), parallel.sharded],
            "attention": attention_of(unwrapped(model)),
        }
        parallel.shard(model)
        tables = {}
        for side, view in views.items():
            assert len({item.row for item in view}) == len(view), (
                f"two examples of the side {side!r} share a row number"
            )
            side_key = {**key, "rows": view_fingerprint(view)}
            found = runtime.from_rank_0(partial(LogpTable.read, folder, side, side_key))
            if found is None:
                with evaluating(model):
                    found = _compute(model, view, pad_id, autocast_dtype, max_tokens, parallel)
                if parallel.is_first:
                    found.write(folder, side, side_key)
            parallel.reshard(model)
            tables[side] = found
        return cls(tables)

    def outputs(self, side_name: str, side: Side) -> SideOutputs:
        """Log-probs of the rows of a side, from the table."""
        assert side_name in self.tables, f"no reference was cached for the side {side_name!r}"
        side = side if "labels" in side else laid_out(side)
        logp_M = self.tables[side_name].look_up(side["host"])
        # The copy of a few kilobytes is asynchronous: nothing waits for the device.
        return SideOutputs(side["labels"], logp_M=logp_M.to(side["input_ids"].device, non_blocking=True))


def view_fingerprint(view: Iterable[Encoded]) -> str:
    """Hash of encoded rows: tokens, label masks and hidden tokens, by row."""
    return fingerprint(
        [
            [item.row, item.input_ids, item.label_mask, *([item.hidden] if item.hidden is not None else [])]
            for item in view
        ]
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (dropout off) while open; restores the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _compute(
    model: nn.Module,
    items: Sequence[Encoded],
    pad_id: int,
    dtype: torch.dtype | None,
    max_tokens: int,
    parallel: Parallel,
) -> LogpTable:
    """Log-probs of rows; all processes share the computation."""
    where = parallel.device if parallel.sharded else next(model.parameters()).device
    batches = token_budgeted_batches([len(item.input_ids) for item in items], max_tokens)
    by_row: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in parallel.mine(batches):
        members = [items[number] for number in batch]
        side = laid_out(on_device(collate(members, pad_id), where))
        host = side["host"]
        counts = host.count_R.tolist()
        with torch.no_grad(), runtime.autocast(where, dtype):
            logp_M = side_outputs(model, side).logp_M.cpu().float()
        for item, logp_N, label_N in zip(
            members, torch.split(logp_M, counts), torch.split(host.label_M, counts), strict=True
        ):
            by_row[item.row] = (logp_N, label_N)
    return LogpTable.of(parallel.merged(by_row))
