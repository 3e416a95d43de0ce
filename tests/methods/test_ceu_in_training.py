"""CE-U in a step: skipped labels are neither in the sum nor in the mean, for any micro-batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_task import task

CEU = "expunge.methods.ceu:ceu"


def by_hand(model: Any, skip: int) -> float:
    """The field's way, row by row: mean over all labels except the first `skip` of each answer."""
    losses = []
    data = task(("forget",))
    for row in range(len(data)):
        example = data[row]["forget"]
        logits_TV = model(torch.tensor([example.input_ids])).logits[0].detach()
        labels = [place for place, counted in enumerate(example.label_mask) if counted][skip:]
        for place in labels:
            z_V = logits_TV[place - 1].double()
            rest_V = z_V.clone()
            rest_V[example.input_ids[place]] = -torch.inf
            keep = torch.arange(len(z_V)) != example.input_ids[place]
            losses.append(-(rest_V.softmax(-1)[keep] * z_V.log_softmax(-1)[keep]).sum().item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("skip", "cut"), [(0, (8, 1)), (1, (8, 1)), (1, (2, 4)), (2, (4, 2))])
def test_the_mean_is_over_what_is_not_skipped(run: Any, tiny_model: Any, skip: int, cut: tuple[int, int]):
    args = {"per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1]}
    history = run(CEU, {"ignore_first_n_answer_tokens": skip}, steps=1, **args).trainer.state.log_history
    assert history[0]["ceu"] == pytest.approx(by_hand(tiny_model(seed=1), skip), rel=1e-5)
