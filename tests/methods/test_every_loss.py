"""Checks for every loss: shape by kind, masks, degenerate rows, half precision, the sign of the gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.core.binding import Binder
from expunge.core.handlers import load_handler, read_signature
from expunge.lm.logprobs import masked_sum, token_logp
from expunge.methods.objective import Term
from expunge.training.driver import summed

LOSSES = {
    "expunge.methods.grad_ascent:grad_ascent": {"forget": -1},
    "expunge.methods.grad_diff:grad_diff": {"forget": -1},
    "expunge.methods.npo:npo": {"forget": -1},
    "expunge.methods.simnpo:simnpo": {"forget": -1},
    "expunge.methods.dpo:dpo": {"forget": -1, "alternate": 1},
    "expunge.methods.wga:wga": {"forget": -1},
    "expunge.methods.satimp:satimp": {"forget": -1},
    "expunge.methods.undial:undial": {"forget": -1},
    "expunge.methods.forget_kl:forget_kl": {},
    "expunge.methods.cl:cl": {"alternate": 1},
    "expunge.methods.rl:rl": {"alternate": 1},
    "expunge.methods.finetune:finetune": {"retain": 1},
    "expunge.methods.retain:nll": {"retain": 1},
    "expunge.methods.retain:kl": {},
    "expunge.methods.ceu:ceu": {"forget": -1},
    "expunge.methods.pdu:pdu": {},
    "expunge.methods.me:me": {},
    "expunge.methods.elm:elm": {},
    "expunge.methods.elm:elm_fluency": {"alternate": 1},
}
"""Handler -> by side, whether a descent step raises (1) or lowers (-1) the likelihood of the labels."""
HYPER: dict[str, dict[str, Any]] = {
    # Rows of one label must have a gradient here; skipped labels have their own tests.
    "expunge.methods.ceu:ceu": {"ignore_first_n_answer_tokens": 0},
    "expunge.methods.pdu:pdu": {"retain_loss_eps": 0.3},
    "expunge.methods.elm:elm": {"concept": "ships", "eta": 2.0, "top_k": None},
}
SHAPE = (4, 6, 11)
COUNTS = (6, 3, 1, 0)
"""Labels of the four rows: full, partly masked, one token, fully masked."""


class Case:
    """Logits of policy and reference on each side, and every quantity that follows from them."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, junk: float | None = None, scale: float = 1.0
    ) -> None:
        self.mask_BN = torch.arange(SHAPE[1]) < torch.tensor(COUNTS).unsqueeze(-1)
        self.logits: dict[str, Tensor] = {}
        self.quantities: dict[str, Tensor] = {}
        for number, side in enumerate(("forget", "retain", "alternate", "expert", "novice")):
            generator = torch.Generator().manual_seed(number)
            label_BN = torch.randint(0, SHAPE[2], SHAPE[:2], generator=generator)
            for prefix in ("", "ref_"):
                logits_BNV = torch.randn(SHAPE, generator=generator) * scale
                if junk is not None:
                    logits_BNV = torch.where(
                        self.mask_BN.unsqueeze(-1),
                        logits_BNV,
                        torch.full_like(logits_BNV, junk) * torch.arange(11),
                    )
                logits_BNV = logits_BNV.to(dtype)
                if not prefix:
                    self.logits[side] = logits_BNV.requires_grad_()
                logp_BN = token_logp(logits_BNV, label_BN)
                self.quantities |= {
                    f"{prefix}{side}_logits_BNV": logits_BNV,
                    f"{prefix}{side}_logp_BN": logp_BN,
                    f"{prefix}{side}_seq_logp_B": masked_sum(logp_BN, self.mask_BN),
                }
            self.quantities |= {
                f"{side}_mask_BN": self.mask_BN,
                f"{side}_label_BN": label_BN,
                f"{side}_len_B": self.mask_BN.sum(-1),
            }

    @staticmethod
    def bound(handler: str, **hyper: Any) -> dict[str, Any]:
        binder = Binder()
        bound = binder.bind("args", read_signature(handler), {**HYPER.get(handler, {}), **hyper})
        assert bound is not None, binder.faults
        return dict(bound.kwargs)

    def __call__(self, handler: str, **hyper: Any) -> Tensor:
        loss, kwargs = load_handler(handler), self.bound(handler, **hyper)
        return loss(*(self.quantities[need.name] for need in loss.spec.needs), **kwargs)

    def sum(self, handler: str) -> Tensor:
        """The loss as the driver sums it: masked values are left out."""
        term = Term(handler, load_handler(handler), 1.0, self.bound(handler))
        return summed(term, term(self.quantities), self.quantities)


@pytest.mark.parametrize("handler", LOSSES)
def test_shape_is_what_the_kind_says(handler: str):
    case, kind = Case(), load_handler(handler).spec.kind
    value = case(handler)
    assert value.shape == (SHAPE[:2] if kind == "token" else SHAPE[:1])
    assert value.isfinite().all()
    counted = value[case.mask_BN] if kind == "token" else value
    torch.testing.assert_close(case.sum(handler), counted.sum())


@pytest.mark.parametrize("junk", [0.0, 1e4, math.inf])
@pytest.mark.parametrize("handler", LOSSES)
def test_masked_positions_change_nothing(handler: str, junk: float):
    """The masked logits are replaced by 0, by huge values and by values that are not finite."""
    plain, other = Case(), Case(junk=junk)
    ours, theirs = plain.sum(handler), other.sum(handler)
    torch.testing.assert_close(theirs, ours)
    ours.backward()
    theirs.backward()
    for side, logits_BNV in plain.logits.items():
        if logits_BNV.grad is not None:
            torch.testing.assert_close(other.logits[side].grad[plain.mask_BN], logits_BNV.grad[plain.mask_BN])
            if math.isfinite(junk):
                assert (other.logits[side].grad[~plain.mask_BN] == 0).all()


@pytest.mark.parametrize("handler", LOSSES)
def test_a_fully_masked_row_has_no_gradient_and_a_one_token_row_has_one(handler: str):
    case = Case()
    case.sum(handler).backward()
    read = {need.side for need in load_handler(handler).spec.needs if not need.reference}
    for side in read:
        gradient = case.logits[side].grad
        assert gradient is not None
        assert (gradient[3] == 0).all()
        assert gradient[2, 0].abs().sum() > 0
        assert (gradient[2, 1:] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("handler", LOSSES)
def test_half_precision_is_finite_and_float32(handler: str, scale: float):
    case = Case(torch.bfloat16, scale=scale)
    value = case(handler)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    value.sum().backward()
    assert all(logits.grad is None or logits.grad.isfinite().all() for logits in case.logits.values())


@pytest.mark.parametrize(
    ("handler", "side", "sign"), [(h, s, sign) for h, sides in LOSSES.items() for s, sign in sides.items()]
)
def test_a_step_down_moves_the_likelihood_the_way_it_should(handler: str, side: str, sign: int):
    case = Case(torch.float64, scale=0.5)
    case.sum(handler).backward()
    gradient = case.logits[side].grad
    label_BN = case.quantities[f"{side}_label_BN"]
    with torch.no_grad():
        moved = token_logp(case.logits[side] - 1e-2 * gradient, label_BN) - token_logp(
            case.logits[side], label_BN
        )
    assert (sign * moved[case.mask_BN] > 0).all()


@pytest.mark.parametrize("handler", LOSSES)
def test_only_what_is_read_has_a_gradient(handler: str):
    case = Case()
    case.sum(handler).backward()
    read = {need.side for need in load_handler(handler).spec.needs if not need.reference}
    assert {side for side, logits in case.logits.items() if logits.grad is not None} == read


@pytest.mark.parametrize("handler", LOSSES)
def test_every_loss_says_where_it_comes_from(handler: str):
    spec = load_handler(handler).spec
    assert spec.paper.startswith("arXiv:")
    assert "github.com" in spec.code
    assert spec.name == handler.partition(":")[2]
