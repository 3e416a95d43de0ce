"""The passes of a micro-batch read no value from the device, so they never wait for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from expunge.lm.labels import laid_out
from expunge.methods.objective import build_objective
from expunge.models.reference import FrozenCopy
from expunge.training.driver import Driver, count_step, place_of
from expunge.training.order import CollateMicroBatch
from expunge.training.places import special

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
"""Operations that need values on the CPU: for the result, or for its shape."""
METHODS = {
    "npo:npo": {"retain": "kl"},
    "grad_diff:grad_diff": {},
    "ceu:ceu": {},
    "me:me": {},
    "undial:undial": {"mask": "predictors"},
    "rmu:rmu": {"module_regex": r"model\.layers\.0"},
    "pdu:pdu": {"retain_loss_eps": 0.3, "mask": "own"},
    "elm:elm": {"concept": "novels", "eta": 2.0, "fluency": 0.0},
}


class Waits(TorchDispatchMode):
    """Lists operations that wait for a device, outside the model's own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        indices = args[1] if name == "index" else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if not self.inside and (name in WAITING or by_mask):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("handler", METHODS)
def test_a_micro_batch_waits_for_no_device(
    tiny_model: Any, tiny_tokenizer: Any, pairs: Any, make_collate: Any, handler: str
) -> None:
    model, data = tiny_model(seed=2).train(), pairs()
    objective = build_objective(f"expunge.methods.{handler}", METHODS[handler])
    objective.prepare(model, 0, tiny_tokenizer)
    reference = FrozenCopy(tiny_model(seed=3), hidden=objective.hidden)
    items = [(data[row], row != 1) for row in range(4)]
    batch = CollateMicroBatch(make_collate, objective.elsewhere)(items)
    places = special(place_of(term) for term in objective.terms if term.kind == "token")
    counts = count_step([batch], sorted(objective.sides), lambda total: total, places)
    driver, waits = Driver(objective, reference), Waits()

    def enter(*_: Any) -> None:
        waits.inside += 1

    def leave(*_: Any) -> None:
        waits.inside -= 1

    for one in (model, reference.model):
        one.register_forward_pre_hook(enter)
        one.register_forward_hook(leave)
    with waits:
        driver.backward(model, batch, counts, lambda loss: loss.backward())
    assert waits.found == []


def test_what_waits_is_seen(pairs: Any, make_collate: Any) -> None:
    side = make_collate([pairs()[0]])["forget"]
    with Waits() as waits:
        laid_out(side)
    assert {"nonzero", "_local_scalar_dense"} <= set(waits.found)
