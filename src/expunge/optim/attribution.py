"""What the scores of weights read: mean gradients, the size of inputs, random numbers; and from a score to a mask."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
    """Score the trainable weights of a model and choose the top share, which may be updated; the others stay frozen.

    Args:
        model: as it is before unlearning; it is left as it was found, without gradients.
        score: see `scores`.
        ratio: the share of the scored weights that may be updated.
        forget: batches of the forget rows, on the model's device; needed by scores that read them, gone
            through once for each quantity.
        retain: batches of the retain rows.
        params: regular expression that a parameter's whole name must match to be scored; the others stay
            frozen. None = all trainable ones.
        seed: of random scores.
        fingerprint: of the model, where it is known; else it is taken from the weights.
        **options: keyword-only parameters of the score.

    Returns:
        The mask, with its settings.

    Raises:
        UserError: an unknown option, data that the score needs and that is not given, or nothing to score.
    """
    reads = _bound(score, options, forget, retain)
    inner = unwrapped(model)
    parameters = {name: p for name, p in inner.named_parameters() if p.requires_grad}
    scored = {
        name: p for name, p in parameters.items() if params is None or _expression(params).fullmatch(name)
    }
    quantities: dict[str, Mapping[str, Tensor]] = {}
    with _eval(inner):
        if "forget_grad_P" in reads and forget is not None:
            quantities["forget_grad_P"] = mean_gradients(inner, forget)
        if "retain_grad_P" in reads and retain is not None:
            quantities["retain_grad_P"] = mean_gradients(inner, retain)
        if "input_rms_P" in reads and forget is not None:
            quantities["input_rms_P"] = input_rms(inner, forget)
    names = [name for name in scored if all(name in found for found in quantities.values())]
    if not names:
        raise UserError(
            "there is no weight to score", f"trainable are: {', '.join(list(parameters)[:5]) or 'none'}"
        )
    left = [name for name in parameters if name not in names]
    if left:
        logger.info(
            "%d of %d parameters are not scored by %s and stay frozen, such as %s",
            len(left),
            len(parameters),
            score.__name__,
            left[0],
        )

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
    settings = {
        "score": f"{score.__module__}:{score.__name__}", "options": _options(score, options),
        "ratio": ratio, "params": params, "seed": seed,
    }  # fmt: skip
    return WeightMask(allowed, settings, fingerprint or model_fingerprint(inner))


def mean_gradients(model: nn.Module, sides: Iterable[Side]) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over all label tokens of all batches, in float32: it does not depend on the size of the batches.

    Args:
        model: its gradients are dropped before and after.
        sides: batches.

    Returns:
        By name of each trainable parameter; 0 where it takes no part.

    Raises:
        UserError: the batches have no label token.
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
            "the rows to score weights by have no label token", "check the split and the template"
        )
    for value in total.values():
        value.div_(tokens)
    return total


def input_rms(model: nn.Module, sides: Iterable[Side]) -> dict[str, Tensor]:
    """Per weight of each Linear, sqrt(mean x^2) of the input that it multiplies, over all real tokens of all batches.

    A weight that several modules share (tied embeddings) has its input as a Linear. A layer whose inputs are
    not laid out [B, T, D] is left out, since it cannot be told which of them are padding.

    Args:
        model: the model.
        sides: batches.

    Returns:
        By parameter's name, expanded to [out, in].
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
    # Before `label_outputs` registers its own hook, so that the vocabulary projection is seen at all
    # positions, too.
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


def _bound(score: Score, options: Mapping[str, Any], forget: Any, retain: Any) -> list[str]:
    """What the score reads, in order, once everything it needs is there."""
    faults: list[Fault] = []
    reads: list[str] = []
    takes: list[str] = []
    for parameter in inspect.signature(score).parameters.values():
        (takes if parameter.kind is parameter.KEYWORD_ONLY else reads).append(parameter.name)
    for side, given, quantities in (
        ("forget", forget, ("forget_grad_P", "input_rms_P")),
        ("retain", retain, ("retain_grad_P",)),
    ):
        if given is None and set(quantities) & set(reads):
            faults.append(
                Fault(
                    f"the mask {score.__name__} reads the {side} rows, and there are none",
                    f"give data.{side}, or another mask",
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
            f"the mask's params {pattern!r} is not a regular expression: {error}",
            "write it as in Python's re module",
        ) from error


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Dropout off while open."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
