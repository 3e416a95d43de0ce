"""Size of each row's gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.tables import Examples, GradNormTable
from expunge.lm import runtime
from expunge.lm.labels import label_index, on_device
from expunge.lm.logprobs import as_float32
from expunge.models.outputs import label_outputs

log = logging.getLogger(__name__)


class GradientNorms(Collector):
    """Size of each row's gradient."""

    kind = "gradnorms"
    table = GradNormTable
    of_metric = ("p", "train_mode")

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[GradNormTable]:
        """View after view."""
        for view, settings in requests:
            yield collect_gradnorms(subject, view.encoded, view.examples, settings, cost)


def collect_gradnorms(
    subject: Subject, encoded: Sequence[Encoded], rows: Examples, settings: Mapping[str, Any], cost: Cost
) -> GradNormTable:
    """Norms of the gradient of each example's mean nll with respect to every trained parameter.

    The end of the turn is left out of the mean. `.grad` is not changed. Settings: `p`, order of the norm;
    `train_mode`, whether dropout is on. An example without labels has NaN.
    """
    p = float(settings.get("p", 2.0))
    log.info("gradient norms: %d examples", len(encoded))
    found: dict[int, tuple[float, float]] = {}
    train = bool(settings.get("train_mode", False))
    model, parallel, everything = subject.model, subject.parallel, range(len(encoded))
    with running(model, cost, train=train, gradients=True), _trained(model) as parameters:
        # Split weights have one gradient, the mean over all processes: these share each row.
        for number in everything if parallel.sharded else parallel.mine(everything):
            found[number] = _norms(subject, encoded[number], parameters, p)
            cost.backward_tokens += len(encoded[number])
            cost.forward_tokens += len(encoded[number])
            cost.padded_tokens += len(encoded[number])
        norms = subject.parallel.merged(found)
    columns = [
        np.array([norms[number][field] for number in range(len(encoded))], dtype=np.float64)
        for field in (0, 1)
    ]
    return GradNormTable(rows, columns[0], columns[1])


def _norms(
    subject: Subject, example: Encoded, parameters: Sequence[nn.Parameter], p: float
) -> tuple[float, float]:
    side = on_device(collate([example], pad_id=0), subject.device)
    if example.turn_end is not None:
        side["label_mask"][0, example.turn_end] = False
    index = label_index(side["input_ids"], side["label_mask"])
    if not bool(index.mask_BN.any()):
        return float("nan"), float("nan")
    with subject.autocast():
        outputs = label_outputs(subject.model, side, index=index)
    # Not `token_logp`: for a nearly certain token the gradient is 1 - p, whose float32 value depends on how p
    # is computed.
    logp_BNV = as_float32(outputs.logits_BNV).log_softmax(-1)
    loss = -logp_BNV.gather(-1, outputs.label_BN.unsqueeze(-1)).mean()
    gradients = _gradients(subject, loss, parameters)
    norm_K = torch.stack([_norm(gradient, p) for gradient in gradients if gradient is not None])
    return float(torch.linalg.vector_norm(norm_K, ord=p)), float(norm_K.mean())


def _gradients(subject: Subject, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """The gradients, without a change of `.grad`; None for a parameter that the loss does not read."""
    if not subject.parallel.sharded:
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    # Gradients of split weights are only given to `.grad`.
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in parameters]
    for parameter, own in zip(parameters, kept, strict=True):
        parameter.grad = own
    return found


def _norm(gradient: Tensor, p: float) -> Tensor:
    norm: Tensor = runtime.whole(torch.linalg.vector_norm(gradient.float(), ord=p))
    return norm


@contextmanager
def _trained(model: Any) -> Iterator[list[nn.Parameter]]:
    """The trained parameters; for a frozen model all parameters, with `requires_grad` on for a while."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    thawed: list[nn.Parameter] = []
    if not parameters:
        thawed = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        parameters = thawed
    try:
        for parameter in thawed:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter in thawed:
            parameter.requires_grad_(False)
