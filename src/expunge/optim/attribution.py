"""Masks from scores, and what the scores read: mean gradients, the size of inputs, random numbers."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import Fault, UserError
from expunge.core.ranges import Share
from expunge.lm import runtime
from expunge.lm.labels import Side
from expunge.lm.logprobs import masked_sum, token_logp
from expunge.models.fingerprint import model_fingerprint
from expunge.models.outputs import label_outputs, unwrapped
from expunge.models.reference import evaluating
from expunge.optim.masks import WeightMask
from expunge.optim.rules import clear_gradients
from expunge.optim.threshold import top_share

logger = logging.getLogger(__name__)

Score = Callable[..., Tensor]


def build_mask(
    model: nn.Module,
    score: Score,
    *,
    ratio: Share = 0.8,
    forget: Iterable[Side] | None = None,
    retain: Iterable[Side] | None = None,
    params: str | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
    **options: Any,
) -> WeightMask:
    """Score the trainable weights of a model; the top share may be updated, the others stay frozen.

    Args:
        model: the model before unlearning; its weights are not changed, its gradients are cleared.
        score: see `scores`.
        ratio: the share of the scored weights that may be updated.
        forget: batches of the forget rows, on the model's device; needed by scores that read them; iterated
            once for each quantity.
        retain: batches of the retain rows.
        params: regular expression that a parameter's whole name must match to be scored; the others stay
            frozen. None = all trainable parameters.
        seed: of random scores.
        fingerprint: of the model, if known; else it is computed from the weights.
        **options: keyword-only parameters of the score.

    Raises:
        UserError: data that the score needs is missing, or there is nothing to score.
    """
    reads = _reads(score, forget, retain)
    inner = unwrapped(model)
    parameters = {name: p for name, p in inner.named_parameters() if p.requires_grad}
    scored = {
        name: p for name, p in parameters.items() if params is None or _expression(params).fullmatch(name)
    }
    with evaluating(inner):
        quantities = _quantities(reads, inner, forget, retain)
    names = [name for name in scored if all(name in found for found in quantities.values())]
    if not names:
        raise UserError(
            "the mask has no weight to score",
            f"check the mask's params; trainable parameters: {', '.join(list(parameters)[:5]) or 'none'}",
        )
    left = [name for name in parameters if name not in names]
    if left:
        text = "%d of %d parameters are not scored by %s and stay frozen, for example %s"
        logger.info(text, len(left), len(parameters), score.__name__, left[0])

    @torch.no_grad()
    def scores_of(name: str) -> Tensor:
        weight_P = scored[name].detach().float()
        values = {key: found[name] for key, found in quantities.items()}
        if "uniform_P" in reads:
            values["uniform_P"] = torch.rand(
                weight_P.shape, generator=runtime.generator(seed, "mask", name)
            ).to(weight_P.device)
        return score(*({"weight_P": weight_P, **values}[key] for key in reads), **options)

    frozen = {name: torch.zeros_like(parameters[name], dtype=torch.bool) for name in left}
    allowed = {**frozen, **top_share(scores_of, names, ratio)}
    settings: dict[str, Any] = {
        "score": f"{score.__module__}:{score.__name__}",
        "options": _options(score, options),
    }
    settings |= {"ratio": ratio, "params": params, "seed": seed}
    return WeightMask(allowed, settings, fingerprint or model_fingerprint(inner))


def _quantities(
    reads: list[str], model: nn.Module, forget: Iterable[Side] | None, retain: Iterable[Side] | None
) -> dict[str, Mapping[str, Tensor]]:
    """What a score reads of the data, by parameter name; `_reads` has refused missing data."""
    makers = {
        "forget_grad_P": (mean_gradients, forget),
        "retain_grad_P": (mean_gradients, retain),
        "input_rms_P": (input_rms, forget),
    }
    return {name: make(model, sides or ()) for name, (make, sides) in makers.items() if name in reads}


def mean_gradients(model: nn.Module, sides: Iterable[Side]) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over the label tokens of all batches, in float32, by parameter name.

    It does not depend on the batch size. A parameter that the loss does not depend on has 0. The gradients of
    the model are cleared before and after.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    tokens = 0
    clear_gradients(model)
    for side in sides:
        outputs = label_outputs(model, side)
        with torch.enable_grad():
            torch.autograd.backward(
                -masked_sum(token_logp(outputs.logits_BNV, outputs.label_BN), outputs.mask_BN).sum()
            )
        tokens += int(outputs.mask_BN.sum())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                total[name].add_(parameter.grad)
        clear_gradients(model)
    if tokens == 0:
        raise UserError(
            "the rows for scoring weights have no label token", "check the split and the template"
        )
    for value in total.values():
        value.div_(tokens)
    return total


def input_rms(model: nn.Module, sides: Iterable[Side]) -> dict[str, Tensor]:
    """By name of each Linear's weight, [out, in]: sqrt(mean x^2) of its input over all tokens but padding.

    For a weight that several modules share (tied embeddings), the input of the Linear counts. A layer whose
    input does not have the shape [B, T, D] is left out, because its padding cannot be identified.
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}
    unclear: set[str] = set()
    present: list[Tensor] = []
    tokens = 0

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        name, mask_BT = names[id(module.weight)], present[0]
        x_BTD = args[0].detach()
        if x_BTD.dim() != 3 or x_BTD.shape[:2] != mask_BT.shape:
            unclear.add(name)
            return
        square_D = torch.where(mask_BT.unsqueeze(-1), x_BTD.float().square(), 0.0).sum((0, 1))
        sums[name] = sums[name] + square_D if name in sums else square_D

    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in names]
    # Registered before the hook of `label_outputs`, to see the vocabulary projection at all positions, too.
    handles = [module.register_forward_pre_hook(add) for module in linears]
    try:
        for side in sides:
            present[:] = [side["attention_mask"].bool()]
            with torch.no_grad():
                label_outputs(model, side)
            tokens += int(present[0].sum())
    finally:
        for handle in handles:
            handle.remove()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {
        name: (total / tokens).sqrt().expand(shapes[name])
        for name, total in sums.items()
        if name not in unclear
    }


def _reads(score: Score, forget: Any, retain: Any) -> list[str]:
    """The names of what the score reads, in order; refuse a side that it needs and that is missing."""
    faults: list[Fault] = []
    parameters = inspect.signature(score).parameters.values()
    reads = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    for side, given, quantities in (
        ("forget", forget, ("forget_grad_P", "input_rms_P")),
        ("retain", retain, ("retain_grad_P",)),
    ):
        if given is None and set(quantities) & set(reads):
            faults.append(
                Fault(
                    f"the mask {score.__name__} reads the {side} rows, and there are none",
                    f"set data.{side}, or choose another mask",
                )
            )
    if faults:
        raise UserError.of(faults)
    return reads


def _options(score: Score, given: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(score).parameters.values()
    return {**{p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}, **given}


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"the mask's params={pattern!r} is not a regular expression: {error}",
            "use the syntax of Python's re module",
        ) from error
