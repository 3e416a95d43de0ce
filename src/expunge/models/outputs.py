"""Logits at label positions only: logits over the vocabulary are never computed at other positions.

A forward-pre-hook on the output embeddings of the model selects the positions before the vocabulary
projection. The wrapped model itself is called. Calling the base model and the projection separately would
bypass the work of DDP, FSDP or PEFT around the forward pass and give wrong gradients.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.core.errors import UserError, compiled, nearest
from expunge.lm.labels import LabelIndex, Labels, Side, label_index, laid_out, padded
from expunge.lm.logprobs import as_float32


class LabelOutputs(NamedTuple):
    """Outputs of one forward pass at label positions.

    Attributes:
        logits_BNV: [B, N, V] logits that predict the labels, in the compute dtype of the model.
        label_BN: [B, N] int64 labels; 0 where padded.
        mask_BN: [B, N] bool, True = a label.
    """

    logits_BNV: Tensor
    label_BN: Tensor
    mask_BN: Tensor


class SideOutputs:
    """Outputs of a model, or of its cache, for one side of a batch; computed at first use.

    Args:
        labels: positions of the labels.
        logits_MV: [M, V] logits that predict the labels, in the compute dtype of the model; None for a cache.
        logp_M: [M] log-probabilities of the labels, if they are already known.
        hidden_BTD: [B, T, D] output of the requested module, at every position, unshifted.
        hidden_LBTD: [L, B, T, D] outputs of the requested sequence of modules.
    """

    def __init__(
        self,
        labels: Labels,
        logits_MV: Tensor | None = None,
        logp_M: Tensor | None = None,
        hidden_BTD: Tensor | None = None,
        hidden_LBTD: Tensor | None = None,
    ) -> None:
        self.labels, self.logits_MV = labels, logits_MV
        self.hidden_BTD, self.hidden_LBTD = hidden_BTD, hidden_LBTD
        self._logp_M = logp_M

    @property
    def logp_M(self) -> Tensor:  # noqa: N802
        """[M] log-probabilities of the labels, float32."""
        if self._logp_M is None:
            assert self.logits_MV is not None, "outputs hold log-probs or logits"
            label_M = self.labels["label_M"].to(self.logits_MV.device)
            # Equals `token_logp` up to rounding, with one vocabulary tensor less in the backward pass.
            self._logp_M = -cross_entropy(as_float32(self.logits_MV), label_M, reduction="none")
        return self._logp_M

    @property
    def logp_BN(self) -> Tensor:  # noqa: N802
        """[B, N] log-probabilities of the labels, float32; 0 where there is no label."""
        return padded(self.logp_M, self.labels)

    @property
    def logits_BNV(self) -> Tensor | None:  # noqa: N802
        """[B, N, V] logits that predict the labels, 0 where there is no label; None for a cache."""
        return None if self.logits_MV is None else padded(self.logits_MV, self.labels)


def side_outputs(model: nn.Module, side: Side, *, hidden: str | Sequence[str] | None = None) -> SideOutputs:
    """Run `model` on a side of a batch, with logits only at the M real labels.

    Args:
        model: the model, wrapped or not (DDP, FSDP, PEFT, torch.compile).
        side: as collated; `laid_out` is applied first if necessary.
        hidden: regular expression that matches the whole name of one module, whose output is returned as
            `hidden_BTD`; for a sequence of them, the outputs are stacked as `hidden_LBTD`.

    Raises:
        UserError: the model has no output embeddings, or `hidden` matches no module or several.
    """
    labels = (side if "labels" in side else laid_out(side))["labels"]

    def select(hidden_BTD: Tensor) -> Tensor:
        at_M = labels["row_M"] * hidden_BTD.shape[1] + labels["position_M"]
        # Three dimensions, because the projection and the code after it expect them.
        return hidden_BTD.flatten(0, 1).index_select(0, at_M.to(hidden_BTD.device)).unsqueeze(0)

    logits_1MV, one, several = _forward(model, side, select, hidden)
    return SideOutputs(labels, logits_1MV.squeeze(0), hidden_BTD=one, hidden_LBTD=several)


def label_outputs(
    model: nn.Module,
    side: Side,
    *,
    index: LabelIndex | None = None,
    call: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> LabelOutputs:
    """Run `model` on a side of a batch and keep only the logits that predict labels, padded to [B, N].

    Use it if you need separate rows; else use `side_outputs`. It is differentiable and works under
    `torch.func` grad, jvp and vmap: positions are gathered, never selected by a boolean mask. Under vmap pass
    `index`, because computing the positions reads a count from the device.

    Args:
        model: the model, wrapped or not (DDP, FSDP, PEFT, torch.compile).
        side: tokens, attention mask and label mask, [B, T].
        index: the label positions, if already known.
        call: function to call instead of the model, such as its `torch.func.functional_call`; default: the
            model.
        **kwargs: further arguments of the forward method.

    Returns:
        Logits, labels and mask, [B, N, ...], N = largest number of labels in a row.

    Raises:
        UserError: the model has no output embeddings.
    """
    index = label_index(side["input_ids"], side["label_mask"]) if index is None else index

    def select(hidden_BTD: Tensor) -> Tensor:
        position_BN1 = index.predictor_BN.to(hidden_BTD.device).unsqueeze(-1)
        return hidden_BTD.gather(1, position_BN1.expand(-1, -1, hidden_BTD.shape[-1]))

    logits_BNV, _, _ = _forward(model, side, select, None, call, **kwargs)
    return LabelOutputs(logits_BNV, index.label_BN, index.mask_BN)


def _forward(
    model: nn.Module,
    side: Side,
    select: Callable[[Tensor], Tensor],
    hidden: str | Sequence[str] | None,
    call: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits of the hidden states that `select` returns, and the outputs of one module or of several."""
    inner = unwrapped(model)
    inputs: dict[str, Any] = {
        "input_ids": side["input_ids"],
        "attention_mask": side["attention_mask"],
        "use_cache": False,
    }
    if "position_ids" in side:
        inputs["position_ids"] = side["position_ids"]
    elif _takes_position_ids(inner):
        # Counted from the first real token, so that left padding does not shift positions.
        inputs["position_ids"] = (side["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    with _selected(inner, select) as fired, _captured(inner, hidden) as kept:
        output = (call or model)(**{**inputs, **kwargs})
    assert fired == [True], (
        f"the output embeddings of {type(inner).__name__} ran {len(fired)} times in a forward pass, not once"
    )
    one = kept[0] if isinstance(hidden, str) else None
    return output.logits, one, torch.stack(kept) if kept and one is None else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, FSDP or torch.compile; an adapter is not removed."""
    while True:
        # A compiled module forwards every attribute of the inner module, so only the name of its child
        # identifies it.
        names = ("_orig_mod",) if hasattr(model, "get_output_embeddings") else ("_orig_mod", "module")
        inner: nn.Module | None = next(
            (child for name in names if (child := dict(model.named_children()).get(name)) is not None), None
        )
        if inner is None:
            return model
        model = inner


def module_named(model: nn.Module, pattern: str) -> nn.Module:
    """The one module whose whole name matches a regular expression; the adapter prefix may be left out.

    Raises:
        UserError: no module or several modules match, or the expression is invalid.
    """
    expression = compiled(rf"(?:base_model\.model\.)?(?:{pattern})", f"module_regex '{pattern}'")
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found = [name for name in modules if expression.fullmatch(name)]
    if len(found) == 1:
        return modules[found[0]]
    if found:
        raise UserError(
            f"module_regex '{pattern}' matches {len(found)} modules: {', '.join(found[:5])}",
            "make it match exactly one",
        )
    raise UserError(
        f"module_regex '{pattern}' matches no module of {type(model).__name__}",
        nearest_names(pattern, [name for name in modules if name]),
    )


def nearest_names(pattern: str, names: list[str]) -> str:
    """A hint: the names with the spelling nearest to a regular expression that matches none of them."""
    near = nearest(re.sub(r"\\(.)", r"\1", pattern), names, count=5) or names[:5]
    return f"the nearest are: {', '.join(near)}"


def modules_named(model: nn.Module, patterns: str | Sequence[str]) -> list[nn.Module]:
    """The module of each pattern, see `module_named`."""
    return [
        module_named(model, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    ]


@contextmanager
def _selected(model: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[list[bool]]:
    """While open, the output embeddings get only what `select` returns; yields a record of each call."""
    head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        raise UserError(
            f"{type(model).__name__} has no output embeddings",
            "give a causal language model (with a vocabulary head)",
        )
    fired: list[bool] = []

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        fired.append(True)
        return (select(args[0]), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield fired
    finally:
        handle.remove()


@contextmanager
def _captured(model: nn.Module, patterns: str | Sequence[str] | None) -> Iterator[list[Tensor]]:
    """While open, keep the outputs of the modules in `patterns`; yields the list of outputs in this order."""
    modules = [] if patterns is None else modules_named(model, patterns)
    outputs: dict[int, Tensor] = {}
    kept: list[Tensor] = []

    def keeper(place: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            outputs[place] = output[0] if isinstance(output, tuple) else output
            if len(outputs) == len(modules):
                kept[:] = [outputs[number] for number in range(len(modules))]

        return keep

    handles = [module.register_forward_hook(keeper(number)) for number, module in enumerate(modules)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _takes_position_ids(model: nn.Module) -> bool:
    """Whether the model, without its adapter, takes `position_ids`."""
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in inspect.signature(type(base).forward).parameters
