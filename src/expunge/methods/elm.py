"""ELM, erasure of language memory: the target is the model's own distribution, shifted to a novice's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.lm.divergence import cross_entropy
from expunge.lm.labels import Side
from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss
from expunge.methods.objective import Objective

EXPERT = "The following text is written by an expert of {concept}, with all the knowledge:\n"
NOVICE = "The following text is written by a novice, who knows nothing of {concept}:\n"


def beginnings(
    tokenizer: Any, concept: str, expert_prompt: str = EXPERT, novice_prompt: str = NOVICE
) -> dict[str, tuple[int, ...]]:
    """The tokens of the `expert` and of the `novice` beginning, without special tokens."""
    texts = {"expert": expert_prompt, "novice": novice_prompt}
    return {
        name: tuple(tokenizer(text.replace("{concept}", concept), add_special_tokens=False)["input_ids"])
        for name, text in texts.items()
    }


class ContextObjective(Objective):
    """An objective that also reads the forget rows after two beginnings: the sides `expert` and `novice`."""

    prefixes: dict[str, tuple[int, ...]]
    bos: int | None

    def prepare(self, model: nn.Module, seed: int, tokenizer: Any = None) -> None:
        """As `Objective.prepare`; also encodes the two beginnings if the erase term is present."""
        super().prepare(model, seed, tokenizer)
        self.prefixes, self.bos = {}, None
        settings = next((term.kwargs for term in self.terms if "concept" in term.kwargs), None)
        if settings is None:
            return
        if tokenizer is None:
            raise UserError(
                "ELM needs a tokenizer to encode its two beginnings, and none is given",
                "pass the model's tokenizer to prepare()",
            )
        self.prefixes = beginnings(
            tokenizer, *(settings[name] for name in ("concept", "expert_prompt", "novice_prompt"))
        )
        self.bos = tokenizer.bos_token_id

    def derived(self, sides: Mapping[str, Side]) -> dict[str, Side]:
        """The forget rows after the two beginnings."""
        return {name: prefixed(sides["forget"], ids, self.bos) for name, ids in self.prefixes.items()}


def prefixed(side: Side, ids: tuple[int, ...], bos: int | None) -> Side:
    """Insert tokens at the beginning of rows, after a leading BOS. The labels stay the same tokens.

    Args:
        side: [B, T] tensors, padded on the right.
        ids: the tokens to insert.
        bos: the token that begins a text, if the tokenizer has one.

    Returns:
        [B, T + len(ids)] tensors.
    """
    tokens_BT = side["input_ids"]
    rows, count = len(tokens_BT), len(ids)
    begins_B1 = tokens_BT[:, :1] == (-1 if bos is None else bos)

    def put(value_BT: Tensor, new_BT: Tensor) -> Tensor:
        new_BT = new_BT.to(value_BT)
        behind_BT = torch.cat([value_BT[:, :1], new_BT, value_BT[:, 1:]], 1)
        return torch.where(begins_B1, behind_BT, torch.cat([new_BT, value_BT], 1))

    ids_BT = torch.cat([tokens_BT[:, :0], *(torch.full_like(tokens_BT[:, :1], token) for token in ids)], 1)
    moved: Side = {**side}
    if "position_ids" in side:
        width = tokens_BT.shape[1] + count
        moved["position_ids"] = torch.arange(width, device=tokens_BT.device).expand(rows, -1)
    if "labels" in side:
        moved["labels"] = {**side["labels"], "position_M": side["labels"]["position_M"] + count}
    return {
        **moved,
        "input_ids": put(tokens_BT, ids_BT),
        "attention_mask": put(side["attention_mask"], torch.ones_like(ids_BT)),
        "label_mask": put(side["label_mask"], torch.zeros_like(ids_BT)),
    }


def shifted(ref_BNV: Tensor, expert_BNV: Tensor, novice_BNV: Tensor, strength: float) -> Tensor:
    """The shifted log-distribution, [..., V] in float32, not normalised.

    log p_ref(. | x) + strength (log p_ref(. | novice, x) - log p_ref(. | expert, x)), where the three logits
    are those of the model before unlearning on the unchanged text and after the expert's and novice's
    beginning.
    """
    ref_BNV, expert_BNV, novice_BNV = (
        as_float32(logits_BNV).log_softmax(-1) for logits_BNV in (ref_BNV, expert_BNV, novice_BNV)
    )
    return ref_BNV + strength * (novice_BNV - expert_BNV)


@loss(
    kind="token",
    retain="kl",
    objective=ContextObjective,
    extra=(("fluency", "expunge.methods.elm:elm_fluency"),),
    paper="arXiv:2410.02760",
    code="https://github.com/rohitgandikota/erasing-llm/blob/7d95c470439fdb487b3699e53cd8063b9f716198/trainscripts/erase.py",
)
def elm(
    forget_logits_BNV: Tensor,
    ref_forget_logits_BNV: Tensor,
    ref_expert_logits_BNV: Tensor,
    ref_novice_logits_BNV: Tensor,
    *,
    concept: str,
    eta: float = 1000.0,
    top_k: int | None = 50,
    expert_prompt: str = EXPERT,
    novice_prompt: str = NOVICE,
) -> Tensor:
    """ELM: CE(q, p_theta) at each forget label, with a target q shifted to a novice's; plus a fluency term.

    q ~ p_ref(y | x) (p_ref(y | novice, x) / p_ref(y | expert, x))^eta.
    L = gamma CE(q, p_theta)(f) + fluency CE(a) + alpha KL(p_ref, p_theta)(r), where a are the answers that
    `elm_fluency` reads; this function is the first term. The model before unlearning runs three times: on the
    unchanged row and after each of the two beginnings; q needs no other teacher. The retain term `kl` differs
    from CE(p_ref, p_theta) on r by a constant; by default the authors' script uses p_ref's likeliest token as
    a hard label.

    Deviations: eta is the same at all positions; in the authors' code it grows from 1 to eta along a text
    (and all three logits are divided by a temperature of 1.2). Each beginning has one wording; theirs draws
    one of ten. They train LoRA adapters.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        ref_forget_logits_BNV: [B, N, V] of the model before unlearning.
        ref_expert_logits_BNV: [B, N, V] the same after the expert's beginning.
        ref_novice_logits_BNV: [B, N, V] the same after the novice's beginning.
        concept: the topic to forget, in words; required.
        eta: strength of the shift.
        top_k: number of tokens that q keeps at each position; null = all.
        expert_prompt: beginning of an expert's text; contains `{concept}`.
        novice_prompt: beginning of a novice's text; likewise.

    Returns:
        [B, N] per label token, >= 0.
    """
    target_BNV = shifted(ref_forget_logits_BNV, ref_expert_logits_BNV, ref_novice_logits_BNV, eta)
    if top_k is not None and top_k < target_BNV.shape[-1]:
        lowest_BN1 = target_BNV.topk(top_k, dim=-1).values[..., -1:]
        target_BNV = target_BNV.masked_fill(target_BNV < lowest_BN1, float("-inf"))
    return cross_entropy(target_BNV.detach(), forget_logits_BNV)


@loss(
    kind="token",
    paper="arXiv:2410.02760",
    code="https://github.com/rohitgandikota/erasing-llm/blob/7d95c470439fdb487b3699e53cd8063b9f716198/trainscripts/erase.py",
)
def elm_fluency(alternate_logp_BN: Tensor) -> Tensor:
    """The fluency term of ELM: -log p(y_t) of each label of an answer that changes the subject.

    The model before unlearning wrote these answers in advance (`procedures.novice`, the command
    `expunge alternates --novice-of`). The weight is 1, as in the authors' script.

    Deviations from the authors' code: the answer's first token counts here, they leave it out. The end of the
    turn counts as well, their texts have none. The mean is over the label tokens of the whole step, theirs
    over the tokens of one text.

    Args:
        alternate_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token, >= 0.
    """
    return -alternate_logp_BN
