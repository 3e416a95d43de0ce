"""PDU, primal-dual unlearning: flatten the logits of the forget set under a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from expunge.core.errors import UserError
from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss
from expunge.methods.combine import Combination
from expunge.methods.objective import Objective, Term
from expunge.methods.schedule import Schedule, StepInfo


class DualObjective(Objective):
    """An objective whose retain weight is a dual multiplier: lambda <- max(0, lambda + eta (L_r - eps)).

    L_r is the retain term's mean over an optimizer step, all micro-batches and ranks, or over an epoch's
    steps. The multiplier starts at alpha, stays there for the warm-up epochs, is logged as `retain_weight`,
    and kept in the checkpoint. At 0 the retain term is computed nonetheless, since its value may bring the
    weight back.

    Args:
        terms: the method's own term first, whose hyper-parameters hold the dual's; then the retain term.
        schedule: has to be None: the multiplier is the schedule.
        combination: as for `Objective`.

    Raises:
        UserError: there is no retain term, or a schedule.
    """

    def __init__(
        self, terms: Sequence[Term], schedule: Schedule | None = None, combination: Combination | None = None
    ) -> None:
        super().__init__(terms, schedule, combination)
        self.settings = terms[0].kwargs
        retain = [term for term in self.terms if term.is_retain]
        if not retain:
            raise UserError(
                "PDU bounds a retain term, and has none here", "choose retain=nll and an alpha above 0"
            )
        if schedule is not None:
            raise UserError(
                "PDU's retain weight is its multiplier, which no schedule may move",
                "take out schedule, or choose another method",
            )
        self.retain = retain[0]
        self.retain.watched = bool(self.settings["primal_dual"])
        self.sum, self.steps = 0.0, 0
        self.info = StepInfo(0, 1, 0.0, 1.0)

    def begin_step(self, info: StepInfo) -> None:
        """Where an epoch is over, and the multiplier moves by epochs: move it."""
        over = info.whole_epochs > self.info.whole_epochs
        self.info = info
        if over and self.settings["dual_update_upon"] == "epoch" and self.steps:
            self._ascend(self.sum / self.steps)
            self.sum, self.steps = 0.0, 0

    def on_step(self, values: Mapping[str, float]) -> None:
        """Move the multiplier, or sum up for the epoch."""
        if self.settings["dual_update_upon"] == "epoch":
            self.sum, self.steps = self.sum + values[self.retain.name], self.steps + 1
        elif self.settings["dual_unit"] == "step":
            self._ascend(values[self.retain.name])

    @property
    def listens(self) -> bool:
        """The field's way: the multiplier moves after each micro-batch of each rank by itself."""
        return bool(
            self.settings["dual_update_upon"] == "step" and self.settings["dual_unit"] == "micro_batch"
        )

    def on_micro_batch(self, values: Mapping[str, float]) -> None:
        """Move the multiplier."""
        self._ascend(values[self.retain.name])

    def report(self) -> dict[str, float]:
        """The multiplier."""
        return {**super().report(), "retain_weight": self.retain.weight}

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, and what the epoch has summed up."""
        return {
            **super().state_dict(),
            "retain_weight": self.retain.weight,
            "dual_sum": self.sum,
            "dual_steps": self.steps,
            "epoch": self.info.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the multiplier of a checkpoint.

        Raises:
            UserError: the checkpoint has none.
        """
        own = ("retain_weight", "dual_sum", "dual_steps", "epoch")
        if any(key not in state for key in own):
            raise UserError("the checkpoint holds no dual multiplier", "resume a run of the same method")
        self.retain.weight, self.sum, self.steps = (
            float(state["retain_weight"]),
            float(state["dual_sum"]),
            int(state["dual_steps"]),
        )
        self.info = StepInfo(0, 1, float(state["epoch"]), 1.0)
        super().load_state_dict({key: value for key, value in state.items() if key not in own})

    def _ascend(self, retain_loss: float) -> None:
        if self.settings["primal_dual"] and self.info.whole_epochs >= self.settings["dual_warmup_epochs"]:
            step = self.settings["dual_step_size"] * (retain_loss - self.settings["retain_loss_eps"])
            self.retain.weight = max(0.0, self.retain.weight + step)


@loss(
    kind="token",
    gamma=1.0,
    alpha=1.0,
    retain="nll",
    places="mask",
    objective=DualObjective,
    paper="arXiv:2506.05314",
    code="https://github.com/locuslab/open-unlearning/blob/fdeb28f836d1e4f38118eb2e907a91206a5c8187/src/trainer/unlearn/pdu.py",
)
def pdu(
    forget_logits_BNV: Tensor,
    *,
    retain_loss_eps: float,
    primal_dual: bool = True,
    dual_step_size: float = 1.0,
    dual_update_upon: Literal["step", "epoch"] = "step",
    dual_warmup_epochs: float = 5.0,
    dual_unit: Literal["step", "micro_batch"] = "step",
    mask: Literal["labels", "own"] = "labels",
) -> Tensor:
    """PDU, its forget term: (max_v z - mean_v z)^2, logit margin flattening, where labels are predicted.

    min over theta, max over lambda >= 0 of mean over forget labels of (max z - mean z)^2 + lambda (CE(r) -
    eps). The retain term's weight is lambda, which starts at alpha and moves as `DualObjective` says. For
    TOFU: alpha 100, dual_step_size 5, retain_loss_eps 0.3.

    Deviations from the field's code, on purpose: that masks the logits at the labels' own positions, one late
    (`mask="own"` brings it back), and moves lambda after each micro-batch of each rank by itself
    (`dual_unit="micro_batch"`). With `dual_update_upon="epoch"` it evaluates the retain loss anew over all
    pairs after an epoch; here the mean of the epoch's steps is taken, at no cost.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        retain_loss_eps: eps, what the retain loss may be, nats; has to be given.
        primal_dual: whether the multiplier moves at all.
        dual_step_size: eta, of the multiplier's ascent.
        dual_update_upon: when it moves.
        dual_warmup_epochs: epochs before it moves.
        dual_unit: what a "step" is: of the optimizer, or a micro-batch.
        mask: where the logits are read: where labels are predicted, or at the labels themselves.

    Returns:
        [B, N] per label token, >= 0.
    """
    logits_BNV = as_float32(forget_logits_BNV)
    return (logits_BNV.amax(-1) - logits_BNV.mean(-1)).square()
