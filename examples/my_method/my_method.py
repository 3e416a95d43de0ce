"""A method of one's own: gradient ascent that leaves tokens alone once the model has lost them.

    expunge unlearn --config-dir examples/my_method/configs trainer=FlooredAscent experiment=unlearn/mini/default \
        model.model_args.pretrained_model_name_or_path=.demo/full task_name=floored

A loss is a function. Its positional parameters are the quantities that it reads, by their names; `expunge` builds exactly these, once,
and does every mask, sum and mean: a loss of kind "token" returns a value for each label token [B, N], one of kind "sequence" a value for each
row [B]. What stands behind the star are hyper-parameters: `trainer.method_args.floor=6` sets one, a name that is none of them is refused
with the near match. Nothing has to be registered: the YAML names this file's function.
"""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(kind="token", gamma=1.0, alpha=1.0, retain="nll", positive=("floor",))
def floored_ascent(forget_logp_BN: Tensor, *, floor: float = 5.0) -> Tensor:
    """Log p of each forget label, as in gradient ascent, but never below -floor: a lost token has no gradient any more.

    L = gamma * mean over forget labels of max(log p(y_t), -floor) + alpha * CE(r).

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.
        floor: surprise, in nats, at which a token counts as forgotten; ln V is a guess among all tokens.

    Returns:
        [B, N] per label token, from -floor to 0.
    """
    return forget_logp_BN.clamp(min=-floor)
