"""Batches of random tokens and a plain training loop as described in `expunge.optim.rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.lm import runtime
from expunge.lm.labels import Side
from expunge.lm.logprobs import masked_sum, token_logp
from expunge.models.outputs import label_outputs
from expunge.optim.rules import Step, StepRule

torch.set_num_threads(1)


def make_side(rows: int, name: str, width: int = 9) -> Side:
    """Rows of different lengths: a prompt of two tokens, then labels, then padding."""
    draw = runtime.generator("optim", name)
    input_ids = torch.randint(5, 60, (rows, width), generator=draw)
    length = torch.randint(4, width + 1, (rows, 1), generator=draw)
    place = torch.arange(width).expand(rows, width)
    return {
        "input_ids": input_ids,
        "attention_mask": (place < length).long(),
        "label_mask": (place >= 2) & (place < length),
        "row": torch.arange(rows),
    }


def split(side: Side, size: int) -> list[Side]:
    """The same rows in batches of `size`."""
    return [
        {key: value[at : at + size] for key, value in side.items()}
        for at in range(0, len(side["input_ids"]), size)
    ]  # type: ignore[misc]


def nll_sum(model: nn.Module, side: Side) -> Tensor:
    outputs = label_outputs(model, side)
    return -masked_sum(token_logp(outputs.logits_BNV, outputs.label_BN), outputs.mask_BN).sum()


def gradient_difference(model: nn.Module, batches: Sequence[dict[str, Side]]) -> Callable[..., None]:
    """The closure of -0.3 NLL(forget) + NLL(retain), each a mean over the step."""
    tokens = {
        name: sum(int(batch[name]["label_mask"][:, 1:].sum()) for batch in batches)
        for name in ("forget", "retain")
    }

    def closure(keep: Callable[[str], bool] | None = None) -> None:
        for batch in batches:
            for name, weight in (("forget", -0.3), ("retain", 1.0)):
                if keep is None or keep(name):
                    (weight * nll_sum(model, batch[name]) / tokens[name]).backward()

    return closure


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rules: Sequence[StepRule],
    steps: int,
    clip: float = 1.0,
    start: int = 0,
) -> list[float]:
    """Make steps as a training loop does; return the norms before clipping."""
    norms = []
    for number in range(start, start + steps):
        batches = [
            {side: make_side(2, f"{side} {number} {part}") for side in ("forget", "retain")}
            for part in range(2)
        ]

        def again(batches: Sequence[dict[str, Side]] = batches) -> Iterator[dict[str, Side]]:
            return iter(batches)

        step = Step(number, gradient_difference(model, batches), again, seed=3)
        for rule in rules:
            rule.on_step_begin(model, step)
        assert all(parameter.grad is None for parameter in model.parameters())
        step.closure()
        for rule in rules:
            rule.on_backward_done(model, step)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def args_of(**changes: Any) -> Any:
    """The training arguments that an optimizer reads."""
    given = {
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
    }
    return SimpleNamespace(**{**given, **changes})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def lab() -> Any:
    """The helpers above."""
    return SimpleNamespace(
        make_side=make_side,
        split=split,
        nll_sum=nll_sum,
        train=train,
        args_of=args_of,
        weights=weights,
        same_bits=same_bits,
        gradient_difference=gradient_difference,
    )


@pytest.fixture
def small(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes models with one layer."""
    return lambda seed=0, **config: tiny_model(
        seed, **{"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, **config}
    )
