"""Estimates of the curvature of the mean cross-entropy at label positions, for Sophia."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.lm.labels import Batch, Side
from expunge.lm.logprobs import as_float32, masked_sum, token_logp
from expunge.models.outputs import label_outputs, unwrapped
from expunge.optim.rules import Step, StepRule, clear_gradients, trainable
from expunge.optim.sophia import Sophia

CHUNK = 128
"""Number of label positions whose cumulative distributions are computed at once."""
Draws = torch.Generator | Sequence[torch.Generator]
"""The source of random numbers: one generator for a batch, or one for each of its rows."""


@torch.no_grad()
def sample_labels(logits_BNV: Tensor, mask_BN: Tensor, generator: Draws) -> Tensor:
    """[B, N] a label at each label position, drawn from the softmax of its logits; 0 where masked.

    The method is inversion of the distribution function, with one uniform number per position, drawn on the
    CPU. So the draw depends only on the generator and not on the device, and a token of probability 0 is
    never drawn.
    """
    label_BN = torch.zeros(mask_BN.shape, dtype=torch.long, device=logits_BNV.device)
    logits_KV = logits_BNV[mask_BN]
    uniform_K = _uniform(mask_BN, generator)
    drawn = []
    for logits_kV, uniform_k in zip(
        torch.split(logits_KV, CHUNK), torch.split(uniform_K, CHUNK), strict=True
    ):
        dtype = torch.float32 if logits_kV.device.type == "mps" else torch.float64
        cumulative_kV = logits_kV.to(dtype).softmax(-1).cumsum(-1)
        target_k1 = uniform_k.to(logits_kV.device, dtype).unsqueeze(-1) * cumulative_kV[:, -1:]
        place_k1 = torch.searchsorted(cumulative_kV, target_k1, right=True)
        drawn.append(place_k1.squeeze(-1).clamp(max=logits_kV.shape[-1] - 1))
    if drawn:
        label_BN[mask_BN] = torch.cat(drawn)
    return label_BN


def sampled_sum(logits_BNV: Tensor, mask_BN: Tensor, generator: Draws) -> Tensor:
    """Sum of the cross-entropies of labels that are drawn from the model's own softmax; scalar, nats.

    The squared gradient of its mean, times the number of label positions, is the Gauss-Newton-Bartlett
    estimate. The mean of this estimate over the draws is the diagonal of the Gauss-Newton matrix of the mean
    cross-entropy (arXiv:2305.14342, Algorithm 2).
    """
    return -masked_sum(token_logp(logits_BNV, sample_labels(logits_BNV, mask_BN, generator)), mask_BN).sum()


def _uniform(mask_BN: Tensor, generator: Draws) -> Tensor:
    """A number in [0, 1) for each label position, row after row, float64 on the CPU."""
    num_labels: list[int] = mask_BN.sum(-1).tolist()
    if isinstance(generator, torch.Generator):
        return torch.rand(sum(num_labels), generator=generator, dtype=torch.float64)
    parts = [
        torch.rand(n, generator=own, dtype=torch.float64)
        for n, own in zip(num_labels, generator, strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def rademacher(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Random signs: +1 or -1 with equal probability, in the shape, device and dtype of each tensor."""
    signs = (torch.randint(0, 2, one.shape, generator=generator, dtype=torch.int8) * 2 - 1 for one in like)
    return [sign.to(one.device, one.dtype) for sign, one in zip(signs, like, strict=True)]


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
    """H v, with H the Hessian of a scalar with graph; 0 for parameters without a second derivative."""
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    dot = sum(
        (g * v).sum() for g, v in zip(gradient, vector, strict=True) if g is not None and g.requires_grad
    )
    if not isinstance(dot, Tensor):
        return [torch.zeros_like(parameter) for parameter in parameters]
    product = torch.autograd.grad(dot, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if part is None else part for p, part in zip(parameters, product, strict=True)
    ]


class SophiaCurvature(StepRule):
    """Estimates the curvature for Sophia before every `every`-th step, on the step's own micro-batches.

    It is the curvature of the mean cross-entropy over the label tokens of the step (all micro-batches, all
    ranks), not of the unlearning loss. A loss that is maximised is concave where the cross-entropy is convex;
    then h could not slow down any coordinate.

    Args:
        optimizer: the optimizer whose h is updated.
        sides: the sides whose label tokens count; None = all sides of the micro-batches.
    """

    def __init__(self, optimizer: Sophia, sides: Sequence[str] | None = None) -> None:
        self.optimizer, self.sides = optimizer, sides

    def on_step_begin(self, model: nn.Module, step: Step) -> None:
        """Pass the number of label tokens of the step to the optimizer, and make an estimate if one is due.

        Raises:
            UserError: the weights are sharded.
        """
        optimizer = self.optimizer
        due = optimizer.hessian_due(step.number)
        if not due and optimizer.mode != "empirical":
            # bs belongs to the last estimate and stays unchanged.
            return
        local = sum(_tokens(side) for batch in step.batches() for _, side in self._of(batch))
        tokens = int(step.all_sum(torch.tensor(local)).item())
        if tokens == 0:
            return
        if optimizer.mode == "empirical":
            optimizer.set_batch_tokens(tokens)
            return
        inner = unwrapped(model)
        if any(hasattr(parameter, "full_tensor") for parameter in inner.parameters()):
            raise UserError(
                f"Sophia in mode {optimizer.mode!r} cannot estimate the curvature of sharded weights",
                "use DDP, or trainer.optimizer.mode=empirical",
            )
        (self._gnb if optimizer.mode == "gnb" else self._hutchinson)(inner, step, tokens)

    def metrics(self) -> dict[str, float]:
        """`win_rate`: share of unclipped coordinates."""
        return {"win_rate": self.optimizer.win_rate}

    def _of(self, batch: Batch) -> list[tuple[str, Side]]:
        return [
            (name, side) for name, side in sorted(batch.items()) if self.sides is None or name in self.sides
        ]

    def _gnb(self, model: nn.Module, step: Step, tokens: int) -> None:
        clear_gradients(model)
        for number, batch in enumerate(step.batches()):
            for name, side in self._of(batch):
                with step.autocast():
                    outputs = label_outputs(model, side)
                draws = _row_generators(step, number, name, batch)
                torch.autograd.backward(sampled_sum(outputs.logits_BNV, outputs.mask_BN, draws) / tokens)
        for parameter in trainable(model):
            if runtime.world_size() > 1:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = step.all_sum(grad)
        self.optimizer.update_hessian(tokens)
        clear_gradients(model)

    def _hutchinson(self, model: nn.Module, step: Step, tokens: int) -> None:
        parameters = trainable(model)
        # All ranks use the same direction, so the sum of their products is the product of the whole step.
        vector = rademacher(parameters, runtime.generator(step.seed, "hutchinson", step.number))
        total = [torch.zeros_like(as_float32(parameter)) for parameter in parameters]
        for side in (side for batch in step.batches() for _, side in self._of(batch)):
            # Fused attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH), step.autocast():
                outputs = label_outputs(model, side)
                nll = (
                    -masked_sum(token_logp(outputs.logits_BNV, outputs.label_BN), outputs.mask_BN).sum()
                    / tokens
                )
                for part, product in zip(total, hessian_product(nll, parameters, vector), strict=True):
                    part.add_(product)
        if runtime.world_size() > 1:
            total = [step.all_sum(part) for part in total]
        products = [v * part for v, part in zip(vector, total, strict=True)]
        self.optimizer.update_hessian(tokens, dict(zip(parameters, products, strict=True)))


def _row_generators(step: Step, number: int, name: str, batch: Batch) -> Draws:
    """A generator for each row of a side, so that a step draws the same labels for any micro-batch size.

    Its seed includes the rows of all sides of the pair: a retain row may occur in a step more than once, and
    its copies get different draws.
    """
    if (
        not all("row" in side for side in batch.values())
        or len({len(side["input_ids"]) for side in batch.values()}) > 1
    ):
        return runtime.generator(step.seed, "gnb", step.number, name, number, runtime.rank())
    pairs = zip(*(batch[side]["row"].tolist() for side in sorted(batch)), strict=True)
    return [runtime.generator(step.seed, "gnb", step.number, name, *pair) for pair in pairs]


def _tokens(side: Side) -> int:
    return int(side["label_mask"][:, 1:].sum())
