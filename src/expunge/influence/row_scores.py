"""How hard it is to forget each row, to first order, at the model before unlearning.

Let l_i be the loss of row i, g_i its gradient at theta_0, and g = (1/N) sum_i g_i the gradient of the whole
forget set:

    projection_i = <g_i, g> / ||g||        score_i = |projection_i|        cosine_i = projection_i / ||g_i||

The mean of the projections is ||g||. To first order, one step of gradient ascent along g changes l_i by
eta ||g|| projection_i. So a row with a HIGH score is forgotten first; in ascending order of scores, the slow
rows come first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.core.ranges import Count
from expunge.data.encoded import Encoded
from expunge.influence.ghost import fits_lora, ghost, lora
from expunge.influence.gradient import EpochGradient, Tensors, epoch_gradient
from expunge.influence.parameters import choose_parameters, gradients_for
from expunge.influence.projections import ATTENTIONS, Along, jvp, naive
from expunge.influence.row_batches import Reduction, RowBatch, batches_of, check_rows, count_labels
from expunge.models.attention import attention_of
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)

Choice = Literal["auto", "naive", "jvp", "ghost", "lora"]
"""Possible values of `algorithm`."""
Algorithm = Callable[
    [nn.Module, Mapping[str, nn.Parameter], Tensors, Iterable[RowBatch], str], dict[int, Along]
]
"""Maps the model in eval mode, the parameters (which require gradients), g, every row once in batches, and
the reduction to <g_i, g> by row number."""
TWO_PASSES: dict[str, Algorithm] = {"naive": naive, "jvp": jvp, "ghost": ghost}
"""The algorithms that need g as input; `lora` computes it."""


@dataclass(frozen=True)
class Item:
    """The score of one row.

    Attributes:
        uid: id of the row.
        row: its position in the forget set.
        n_tokens: number of its label tokens.
        loss: l_i in nats.
        projection: <g_i, g> / ||g||.
        score: |projection|; the projection itself if scores are signed.
        grad_norm: ||g_i||; None if the algorithm does not compute it.
        cosine: projection / ||g_i||; None if there is no grad_norm or it is 0.
    """

    uid: str
    row: int
    n_tokens: int
    loss: float
    projection: float
    score: float
    grad_norm: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Difficulty:
    """The scores of a forget set, and how they were computed.

    Attributes:
        items: one item per row, in row order.
        gradient: g by parameter name, float32.
        norm: ||g||.
        scorer: the values of loss, reduction, epoch_grad_mode, params, algorithm and signed that were used.
        attention: the attention implementation that was used.
        notices: notices for the user.
    """

    items: tuple[Item, ...]
    gradient: Mapping[str, Tensor]
    norm: float
    scorer: Mapping[str, Any]
    attention: str
    notices: tuple[str, ...] = ()


def score_rows(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    algorithm: Choice = "auto",
    loss: Literal["nll"] = "nll",
    reduction: Reduction = "token_mean",
    epoch_grad_mode: Literal["frozen"] = "frozen",
    params: str = "auto",
    signed: bool = False,
    max_tokens: Count = 4096,
) -> Difficulty:
    """Score the rows of a forget set.

    Computes in float32 in eval mode (dropout off); dot products are accumulated in float64. The model is not
    changed.

    Args:
        model: the model before unlearning, with float32 weights, on the device for the computation.
        encoded: the forget rows, one example per row.
        algorithm: `naive` (one backward pass per row; also gives norms and cosines), `jvp` (forward passes
            with tangents), `ghost` (one backward pass per batch, for any attention), `lora` (a single pass
            over the rows; also gives norms and cosines; stores the gradient of every row), or `auto`: lora
            for an adapter whose gradients fit in memory, else jvp if the attention has a forward derivative,
            else ghost.
        loss: `nll`, the negative log-likelihood of the label tokens of the row.
        reduction: `token_mean`, or `token_sum`, which ranks as the gradient of NPO at theta_0.
        epoch_grad_mode: `frozen`: g is the mean gradient at the given model.
        params: which parameters, see `parameters.choose_parameters`.
        signed: use the projection itself as the score.
        max_tokens: padded tokens of a batch.

    Raises:
        UserError: rows have no labels, no parameter can be differentiated, or the gradient is zero or not
            finite.
    """
    check_rows(encoded)
    chosen = choose_parameters(model, params)
    attention = attention_of(unwrapped(model))
    if algorithm == "auto" and chosen.kind == "lora" and fits_lora(model, chosen.parameters, len(encoded)):
        algorithm = "lora"
    taken = _algorithm(algorithm, attention)
    where = next(iter(chosen.parameters.values())).device

    def batches(what: str) -> Iterable[RowBatch]:
        found = batches_of(encoded, max_tokens, where, max_rows=1 if taken == "naive" else None)
        return _with_progress(found, len(encoded), what)

    with gradients_for(model, chosen.parameters):
        g, along = _measured(model, chosen.parameters, taken, batches, reduction)
    items = tuple(
        _item(row, g.losses[number], along[number], g.norm, signed) for number, row in enumerate(encoded)
    )
    scorer: dict[str, Any] = {"loss": loss, "reduction": reduction, "epoch_grad_mode": epoch_grad_mode}
    scorer |= {"params": chosen.kind, "algorithm": taken, "signed": signed}
    used = f"{attention} (math)" if (taken, attention) == ("jvp", "sdpa") else attention
    return Difficulty(items, g.by_name, g.norm, scorer, used, chosen.notices)


def _measured(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    algorithm: str,
    batches: Callable[[str], Iterable[RowBatch]],
    reduction: str,
) -> tuple[EpochGradient, dict[int, Along]]:
    """The mean gradient g, and the dot product (and norm) of each row."""
    if algorithm == "lora":
        return lora(model, parameters, batches("gradients of the rows"), reduction)
    g = epoch_gradient(model, parameters, batches("gradient of the forget set"), reduction)
    return g, TWO_PASSES[algorithm](model, parameters, g.by_name, batches("projections"), reduction)


def _algorithm(asked: str, attention: str) -> str:
    if attention in ATTENTIONS:
        return "jvp" if asked == "auto" else asked
    if asked == "jvp":
        hint = (
            f"load the model with model.model_args.attn_implementation={' or '.join(ATTENTIONS)}, "
            "or choose difficulty.algorithm=ghost"
        )
        raise UserError(f"difficulty.algorithm=jvp: {attention} attention has no forward derivative", hint)
    return "ghost" if asked == "auto" else asked


def _item(row: Encoded, loss: float, along: Along, norm: float, signed: bool) -> Item:
    projection = along.dot / norm
    cosine = projection / along.norm if along.norm else None
    score = projection if signed else abs(projection)
    return Item(row.row_id, row.row, count_labels(row), loss, projection, score, along.norm, cosine)


def _with_progress(batches: Iterable[RowBatch], total: int, what: str) -> Iterable[RowBatch]:
    """The batches, with a log line after every tenth of the rows."""
    done, next_share = 0, 0.1
    for batch in batches:
        yield batch
        done += len(batch.numbers)
        if done >= next_share * total:
            log.info("%s: %d of %d rows", what, done, total)
            next_share = done / total + 0.1
