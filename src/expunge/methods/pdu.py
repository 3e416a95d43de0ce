"""PDU, primal-dual unlearning: flatten the logits of the forget set, with a bound on the retain loss."""

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

    L_r is the retain term's mean over an optimizer step (all micro-batches and ranks) or over an epoch's
    steps. The multiplier starts at alpha and stays there for the warm-up epochs. It is logged as
    `retain_weight` and saved in the checkpoint. The retain term is computed even if the multiplier is 0,
    because its value may raise the multiplier again.

    Args:
        terms: the method's own term, whose hyper-parameters include those of the multiplier; then the retain
            term.
        schedule: must be None: the multiplier is the schedule.
        combination: as for `Objective`.

    Raises:
        UserError: there is no retain term, or there is a schedule.
    """

    def __init__(
        self, terms: Sequence[Term], schedule: Schedule | None = None, combination: Combination | None = None
    ) -> None:
        super().__init__(terms, schedule, combination)
        self.settings = terms[0].kwargs
        retain = [term for term in self.terms if term.is_retain]
        if not retain:
            raise UserError(
                "PDU bounds a retain term, and none is given",
                "set trainer.method_args.retain=nll and an alpha above 0",
            )
        if schedule is not None:
            raise UserError(
                "PDU sets its retain weight itself, so it takes no schedule",
                "remove trainer.method_args.schedule, or choose another method",
            )
        self.retain = retain[0]
        self.retain.watched = bool(self.settings["primal_dual"])
        self.sum, self.steps = 0.0, 0
        self.info = StepInfo(0, 1, 0.0, 1.0)

    def begin_step(self, info: StepInfo) -> None:
        """At the end of an epoch, update the multiplier if it is updated by epochs."""
        over = info.whole_epochs > self.info.whole_epochs
        self.info = info
        if over and self.settings["dual_update_upon"] == "epoch" and self.steps:
            self._ascend(self.sum / self.steps)
            self.sum, self.steps = 0.0, 0

    def on_step(self, values: Mapping[str, float]) -> None:
        """Update the multiplier, or add to the sum of the epoch."""
        if self.settings["dual_update_upon"] == "epoch":
            self.sum, self.steps = self.sum + values[self.retain.name], self.steps + 1
        elif self.settings["dual_unit"] == "step":
            self._ascend(values[self.retain.name])

    @property
    def listens(self) -> bool:
        """Whether each rank updates its own multiplier after each micro-batch, as in the field's code."""
        return bool(
            self.settings["dual_update_upon"] == "step" and self.settings["dual_unit"] == "micro_batch"
        )

    def on_micro_batch(self, values: Mapping[str, float]) -> None:
        """Update the multiplier."""
        self._ascend(values[self.retain.name])

    def report(self) -> dict[str, float]:
        """The multiplier."""
        return {**super().report(), "retain_weight": self.retain.weight}

    def state_dict(self) -> dict[str, Any]:
        """The multiplier and the sum of the epoch so far."""
        return {
            **super().state_dict(),
            "retain_weight": self.retain.weight,
            "dual_sum": self.sum,
            "dual_steps": self.steps,
            "epoch": self.info.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the multiplier of a checkpoint."""
        own = ("retain_weight", "dual_sum", "dual_steps", "epoch")
        if any(key not in state for key in own):
            raise UserError("the checkpoint holds no dual multiplier", "resume a run of the same method")
        self.retain.weight, self.sum = float(state["retain_weight"]), float(state["dual_sum"])
        self.steps = int(state["dual_steps"])
        self.info = StepInfo(0, 1, float(state["epoch"]), 1.0)
        super().load_state_dict({key: value for key, value in state.items() if key not in own})

    def _ascend(self, retain_loss: float) -> None:
        if self.settings["primal_dual"] and self.info.whole_epochs >= self.settings["dual_warmup_epochs"]:
            step = self.settings["dual_step_size"] * (retain_loss - self.settings["retain_loss_eps"])
            self.retain.weight = max(0.0, self.retain.weight + step)


@loss(
    kind="token",
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
    """The forget term of PDU: (max_v z - mean_v z)^2, logit margin flattening, where labels are predicted.

    min over theta, max over lambda >= 0 of mean over forget labels of (max z - mean z)^2 + lambda (CE(r) -
    eps). The retain term's weight is lambda; it starts at alpha and is updated by `DualObjective`. For TOFU:
    alpha 100, dual_step_size 5, retain_loss_eps 0.3.

    Deviations from the field's code, on purpose: it masks the logits at the labels' own positions, one
    position late (`mask="own"` restores it). On each rank separately, it updates lambda after each
    micro-batch (`dual_unit="micro_batch"`). With `dual_update_upon="epoch"` it evaluates the retain loss
    again over all pairs after an epoch; here the mean of the epoch's steps is used, without extra cost.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        retain_loss_eps: eps, the bound on the retain loss, nats; required.
        primal_dual: whether the multiplier is updated at all.
        dual_step_size: eta, the step size of the multiplier.
        dual_update_upon: when the multiplier is updated.
        dual_warmup_epochs: epochs before the first update.
        dual_unit: what a "step" is: an optimizer step or a micro-batch.
        mask: where the logits are read: where labels are predicted, or at the labels themselves.

    Returns:
        [B, N] per label token, >= 0.
    """
    logits_BNV = as_float32(forget_logits_BNV)
    return (logits_BNV.amax(-1) - logits_BNV.mean(-1)).square()
