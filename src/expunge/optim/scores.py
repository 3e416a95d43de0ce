"""Scores of weights: the weights with the highest scores may be updated.

As with losses, the positional parameters are what a score reads, the keyword-only parameters are options:

    weight_P        the parameter, of any shape
    forget_grad_P   gradient of the mean cross-entropy over the label tokens of the forget rows
    retain_grad_P   the same for the retain rows
    input_rms_P     per weight W[o, i] of a Linear with input x: sqrt(mean x_i^2) over the forget rows' tokens
    uniform_P       uniform numbers in [0, 1), drawn from the seed and the parameter's name

All are float32; P is any shape. The score must not be negative. The configuration names a score as
module:function, so your own score is a function in your own file.
"""

from __future__ import annotations

from torch import Tensor


def wagle(weight_P: Tensor, forget_grad_P: Tensor, retain_grad_P: Tensor, *, mu: float = 1e-3) -> Tensor:
    """WAGLE's attribution, |(theta - g_r / mu) g_f| (arXiv:2410.17509).

    This is the closed form with a diagonal retain Hessian mu I: the change of the forget loss if a weight is
    removed and the others minimise the retain loss again. If g_r g_f is large, forgetting and retaining
    compete for the same weight.

    Args:
        weight_P: theta.
        forget_grad_P: g_f.
        retain_grad_P: g_r.
        mu: assumed curvature of the retain loss.
    """
    return ((weight_P - retain_grad_P / mu) * forget_grad_P).abs()


def magnitude(weight_P: Tensor) -> Tensor:
    """|theta|."""
    return weight_P.abs()


def forget_gradient(forget_grad_P: Tensor) -> Tensor:
    """|g_f|."""
    return forget_grad_P.abs()


def snip(weight_P: Tensor, forget_grad_P: Tensor) -> Tensor:
    """SNIP's connection sensitivity, |g_f theta| (arXiv:1810.02340)."""
    return (forget_grad_P * weight_P).abs()


def wanda(weight_P: Tensor, input_rms_P: Tensor) -> Tensor:
    """Wanda's |W| sqrt(mean x^2) (arXiv:2306.11695, up to a factor that all weights share).

    Weights are compared over the whole model, as with every score here; the paper compares within an output
    row. Only weights of Linear layers have an input; the others are not scored and stay frozen.
    """
    return weight_P.abs() * input_rms_P


def uniform(uniform_P: Tensor) -> Tensor:
    """The baseline: a random choice of weights."""
    return uniform_P
