"""l1-sparse: fine-tuning on the retain set with a penalty on the absolute values of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss


@loss(
    kind="model",
    retain="nll",
    paper="arXiv:2304.04934",
    code="https://github.com/OPTML-Group/SOUL/blob/997a915f805202708e49be4ebdefcb9f5b593d5e/src/unlearn/FT.py",
)
def l1_sparse(parameters: Sequence[Tensor], *, alpha_l1: float = 0.0) -> Tensor:
    """The penalty alpha_l1 * sum |theta| over the parameters that are trained; the retain term is CE(r).

    L = CE(r) + alpha_l1 ||theta||_1, with the penalty once per optimizer step for any number of
    micro-batches. The forget set is not read. The default of 0, as in SOUL's code, is plain fine-tuning on
    the retain set.

    As in SOUL's code, the weight of the penalty is constant, and the sum is over the parameters that are
    trained. In the authors' code the weight falls linearly by epochs (`schedule=fade`), and the sum is over
    all parameters:
    https://github.com/OPTML-Group/Unlearn-Sparse/blob/16a2dbc8d88f222e238556baca717cebb6269dc2/unlearn/FT.py.

    Args:
        parameters: the parameters that are trained, of any shapes.
        alpha_l1: weight of the penalty.

    Returns:
        [], >= 0.
    """
    return alpha_l1 * torch.stack([as_float32(parameter).abs().sum() for parameter in parameters]).sum()
