"""A user's own method: gradient ascent that ignores tokens that the model has already forgotten.

    expunge unlearn --config-dir examples/my_method/configs trainer=FlooredAscent \
        experiment=unlearn/mini/default \
        model.model_args.pretrained_model_name_or_path=.demo/full task_name=floored

A loss is a function. Its positional parameters name the quantities that it reads. `expunge` builds exactly
these quantities and applies every mask, sum and mean. A loss of kind "token" returns one value per label
token [B, N], a loss of kind "sequence" one value per row [B]. Keyword-only parameters (after the star) are
hyper-parameters: `trainer.method_args.floor=6` sets one, and an unknown name is refused with the near match.
Nothing has to be registered: the YAML file names the function.
"""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(kind="token", gamma=1.0, alpha=1.0, retain="nll", positive=("floor",))
def floored_ascent(forget_logp_BN: Tensor, *, floor: float = 5.0) -> Tensor:
    """Log p of each forget label, as in gradient ascent, but at least -floor; at the floor the gradient is 0.

    L = gamma * mean over forget labels of max(log p(y_t), -floor) + alpha * CE(r).

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.
        floor: -log p, in nats, above which a token counts as forgotten; ln V is a uniform guess.

    Returns:
        [B, N], one value per label token, from -floor to 0.
    """
    return forget_logp_BN.clamp(min=-floor)
