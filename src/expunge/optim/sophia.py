"""Sophia: sign momentum with smaller steps along coordinates of high curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from expunge.core.errors import UserError
from expunge.core.ranges import Count, Decay, NotNegative
from expunge.optim.arguments import OptimizerArgs

Mode = Literal["gnb", "hutchinson", "empirical", "off"]
EPS = 1e-15


def sophia(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] = (0.965, 0.99),
    rho: NotNegative = 0.04,
    mode: Mode = "gnb",
    every: Count = 10,
    soul_compat: bool = False,
) -> Sophia:
    """Build Sophia; learning rate and weight decay are those of `trainer.args` (the paper's: 1e-4 and 0.1).

    Args:
        groups: parameter groups, with and without weight decay.
        args: training arguments.
        betas: decay of the momentum and of the curvature; SOUL's runs use (0.9, 0.95).
        rho: scale of the curvature; SOUL's runs use 0.03 to 0.04.
        mode: see `Sophia`.
        every: steps between two estimates of the curvature.
        soul_compat: see `Sophia`.
    """
    given = (groups, args.learning_rate, betas, rho, args.weight_decay)
    return Sophia(*given, mode=mode, every=every, soul_compat=soul_compat)


class Sophia(torch.optim.Optimizer):
    """Sophia (arXiv:2305.14342, Algorithm 3), in the form of the authors' code that SOUL uses.

    SOUL: arXiv:2404.18239. One step, all products per coordinate:

        theta *= 1 - lr wd
        m = b1 m + (1 - b1) g
        theta -= lr sign(m) min(1, |m| / (rho bs h + 1e-15))

    Every `every` steps, separately from the step, `update_hessian` updates h from ghat, the gradient of the
    mean cross-entropy of labels that are sampled from the model's own softmax: h = b2 h + (1 - b2) ghat^2.
    With bs the number of label tokens in that mean, bs ghat^2 is the Gauss-Newton-Bartlett estimate of the
    Gauss-Newton diagonal.

    The mode says what h is:
        gnb: as above.
        hutchinson: h = b2 h + (1 - b2) u (H u), u = +-1 (Sophia-H). H is already that of a mean, so bs is 1;
            a negative h counts as 0.
        empirical: h = b2 h + (1 - b2) g^2 with the step's own gradient, at each step, before h is used. This
            is neither the Gauss-Newton matrix nor the Fisher matrix; it is what SOUL's code does.
        off: h = 0, that is sign momentum (for |m| >= 1e-15). Code that never updates the Hessian does this.

    m and h are float32 if the parameters are in half precision, else they have the parameters' dtype.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: b1 and b2.
        rho: scale of the curvature.
        weight_decay: wd.
        mode: one of the four.
        every: steps between two estimates of h in the modes gnb and hutchinson.
        soul_compat: apply the momentum line twice per step, as SOUL's code does: b1 then acts as b1^2 (0.9 as
            0.81).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        mode: Mode = "gnb",
        every: int = 10,
        soul_compat: bool = False,
    ) -> None:
        assert mode in get_args(Mode), "the binder takes no other"
        self.mode, self.every, self.soul_compat = mode, int(every), bool(soul_compat)
        self._unclipped: list[Tensor] = []
        self._moving: list[Tensor] = []
        defaults: dict[str, Any] = {"lr": lr, "betas": (float(betas[0]), float(betas[1])), "rho": rho}
        defaults |= {"weight_decay": weight_decay, "bs": None, "mode": mode}
        super().__init__(params, defaults)

    @property
    def win_rate(self) -> float:
        """Share of coordinates that the last step did not clip; NaN before the first step.

        Coordinates with m = 0 do not move and are excluded: weights that a mask freezes and rows of unseen
        tokens.
        """
        if not self._moving:
            return float("nan")
        device = self._moving[0].device
        unclipped, moving = (
            torch.stack([part.to(device) for part in parts]).sum().item()
            for parts in (self._unclipped, self._moving)
        )
        return float(unclipped / moving) if moving else float("nan")

    def hessian_due(self, step: int) -> bool:
        """Whether an estimate is due before a step, counted from 0: at the steps 0, every, 2 every, ..."""
        return self.mode in ("gnb", "hutchinson") and step % self.every == 0

    def set_batch_tokens(self, bs: int) -> None:
        """Set the number of label tokens that the gradient is averaged over."""
        for group in self.param_groups:
            group["bs"] = int(bs)

    @torch.no_grad()
    def update_hessian(self, bs: int | None = None, diagonal: Mapping[Tensor, Tensor] | None = None) -> None:
        """Update h with a new estimate.

        Args:
            bs: number of label tokens in the mean whose gradient is in `.grad`; used for the next steps as
                well. Needed once in mode gnb.
            diagonal: the estimate u (H u) by parameter, in mode hutchinson. In mode gnb the estimate is
                `.grad` squared.

        Raises:
            UserError: the mode takes no estimate, or what the mode needs is not given.
        """
        if self.mode not in ("gnb", "hutchinson"):
            raise UserError(
                f"Sophia in mode {self.mode!r} takes no estimate of the curvature",
                "use mode=gnb or mode=hutchinson",
            )
        if (self.mode == "hutchinson") != (diagonal is not None):
            raise UserError(
                f"Sophia in mode {self.mode!r} was given an estimate for another mode",
                "mode gnb reads .grad and takes no diagonal; mode hutchinson needs the diagonal",
            )
        if bs is not None:
            self.set_batch_tokens(bs)
        for group in self.param_groups:
            if self.mode == "gnb" and group["bs"] is None:
                raise _no_bs(self.mode)
            beta2 = group["betas"][1]
            for p in group["params"]:
                estimate = p.grad if diagonal is None else diagonal.get(p)
                if estimate is None:
                    continue
                h = self._state(p)["hessian"]
                estimate = estimate.to(h.dtype)
                if diagonal is None:
                    h.mul_(beta2).addcmul_(estimate, estimate, value=1 - beta2)
                else:
                    h.mul_(beta2).add_(estimate, alpha=1 - beta2)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step; `closure` computes loss and gradient again, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._unclipped, self._moving = [], []
        for group in self.param_groups:
            scale = group["rho"] * self._tokens(group)
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group, scale)
        return loss

    def _tokens(self, group: Mapping[str, Any]) -> int:
        given = None if self.mode == "hutchinson" else group["bs"]
        if given is None and self.mode == "empirical":
            raise _no_bs(self.mode)
        # In the other modes, h is still 0 as long as no number of tokens has been set.
        return 1 if given is None else int(given)

    def _move(self, p: Tensor, grad: Tensor, group: Mapping[str, Any], scale: float) -> None:
        state = self._state(p)
        m = state["exp_avg"]
        grad = grad.to(m.dtype)
        beta1, beta2 = group["betas"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        for _ in range(2 if self.soul_compat else 1):
            m.mul_(beta1).add_(grad, alpha=1 - beta1)
        if self.mode == "off":
            ratio = m.abs().div_(EPS)
        else:
            h = state["hessian"]
            if self.mode == "empirical":
                h.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            ratio = m.abs().div_((h.clamp(min=0) if self.mode == "hutchinson" else h).mul(scale).add_(EPS))
        self._moving.append(m.count_nonzero())
        self._unclipped.append(((ratio < 1) & (m != 0)).sum())
        ratio.clamp_(max=1)
        if p.dtype == m.dtype:
            p.addcmul_(m.sign(), ratio, value=-group["lr"])
        else:
            p.add_((m.sign() * ratio).mul_(-group["lr"]).to(p.dtype))

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            dtype = torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            if self.mode != "off":
                state["hessian"] = torch.zeros_like(state["exp_avg"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but m and h keep their saved dtype; torch would cast them to the parameters' dtype.

        Raises:
            UserError: the state was saved in another mode, so its h means something else.
        """
        modes = {group.get("mode") for group in state_dict["param_groups"]}
        if modes != {self.mode}:
            saved = ", ".join(sorted(map(str, modes)))
            raise UserError(
                f"the optimizer state was saved by Sophia in mode {saved}, but this run has mode {self.mode}",
                f"resume with trainer.optimizer.mode={saved}, or start a new run",
            )
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for place, p in zip(places, parameters, strict=True):
            for key, value in state_dict["state"].get(place, {}).items():
                self.state[p][key] = value.detach().clone().to(p.device)


def _no_bs(mode: str) -> UserError:
    return UserError(
        f"Sophia in mode {mode!r} needs the number of label tokens in the mean, and it is not set",
        "call set_batch_tokens, or pass bs to update_hessian",
    )
