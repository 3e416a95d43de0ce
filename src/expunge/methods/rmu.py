"""RMU, representation misdirection for unlearning: steer hidden states of forget text to a random vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.methods.base import loss
from expunge.methods.objective import Objective
from expunge.methods.representation import Ratio, counted_tokens, squared_distance
from expunge.models.outputs import unwrapped


class ControlVector(Objective):
    """An objective with a random unit vector u, drawn once per run from the seed and saved in checkpoints."""

    control_D: Tensor | None = None

    def prepare(self, model: nn.Module, seed: int, tokenizer: Any = None) -> None:
        """As `Objective.prepare`; also draws u: uniform on [0, 1)^D, then normalised."""
        super().prepare(model, seed, tokenizer)
        width = int(cast(Any, unwrapped(model)).config.get_text_config().hidden_size)
        control_D = torch.rand(width, generator=runtime.generator(seed, "control vector"))
        self.control_D = control_D / control_D.norm()

    def given(self, device: torch.device) -> dict[str, Tensor]:
        """The control vector on a device."""
        assert self.control_D is not None, "prepare() comes before the first step"
        self.control_D = self.control_D.to(device)
        return {**super().given(device), "control_D": self.control_D}

    def state_dict(self) -> dict[str, Any]:
        """The control vector."""
        return {**super().state_dict(), **({} if self.control_D is None else {"control_D": self.control_D})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the control vector of a checkpoint."""
        if "control_D" not in state:
            raise UserError("the checkpoint holds no control vector", "resume a run of the same method")
        self.control_D = state["control_D"]
        super().load_state_dict({key: value for key, value in state.items() if key != "control_D"})


@loss(
    kind="sequence",
    retain="embed_diff",
    objective=ControlVector,
    paper="arXiv:2403.03218",
    code="https://github.com/locuslab/open-unlearning/blob/7fa0b552e59bd50aef00529b43546865c6f30c7d/src/trainer/unlearn/rmu.py",
)
def rmu(
    forget_hidden_BTD: Tensor,
    control_D: Tensor,
    forget_mask_BT: Tensor,
    forget_attention_mask_BT: Tensor,
    *,
    steering_coeff: float = 2.0,
    module_regex: str = r"model\.layers\.7",
    trainable_params_regex: str | Sequence[str] = (".*",),
    ratio: Ratio = "sequence",
) -> Tensor:
    """RMU: ||h(x_f) - c u||^2 / d, averaged over the tokens that count, then over sequences.

    h is the OUTPUT of the module that `module_regex` names (`model.layers.7` = hidden_states[8] of
    transformers), not shifted; u is a unit vector, drawn once per run. In a row with a prompt the labels
    count, in plain text all tokens. The retain term `embed_diff` is the same distance between the model and
    the model before unlearning.

    Published for WMDP (Zephyr-7B): c 6.5, alpha 1200, layer 7, `mlp.down_proj` of layers 5 to 7, 150 batches
    of 4, lr 5e-5.

    Deviations from the field's code, on purpose: it divides [B] sums by counts of shape [B, 1]
    (`ratio="batch"` restores it). It also computes gradients of parameters that it does not train, and they
    count in the norm for clipping; here these parameters are frozen.

    Args:
        forget_hidden_BTD: [B, T, D] output of the module in the model.
        control_D: [D] the unit vector u.
        forget_mask_BT: [B, T] True = a label, at its own position.
        forget_attention_mask_BT: [B, T] True = a token, not padding.
        steering_coeff: c, the norm of the vector that states are steered to.
        module_regex: matches the whole name of the module whose output is steered.
        trainable_params_regex: match the whole names of the parameters that are trained; the others are
            frozen.
        ratio: the divisor of a sequence's sum.

    Returns:
        [B] per sequence, >= 0.
    """
    counted_BT = counted_tokens(forget_mask_BT, forget_attention_mask_BT)
    return squared_distance(forget_hidden_BTD, steering_coeff * control_D, counted_BT, ratio)
