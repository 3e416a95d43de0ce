"""Five steps of every method, on a small model that knows the rows, change what the method claims."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_task import PAD, task
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.data.collate import PairCollator
from expunge.lm.logprobs import masked_mean, token_logp, token_statistics
from expunge.models.outputs import label_outputs, side_outputs

LAYER = r"model\.layers\.1"


def logp(model: Any, ran: Any, side: str) -> Tensor:
    """Mean log-probability of the labels of each row [B]."""
    with torch.no_grad():
        out = label_outputs(model, ran.batch[side])
    return masked_mean(token_logp(out.logits_BNV, out.label_BN), out.mask_BN)


def change(ran: Any, side: str) -> float:
    return float((logp(ran.model, ran, side) - logp(ran.before, ran, side)).mean())


def hidden(model: Any, ran: Any, side: str) -> Tensor:
    """States [n, D] at the labels of a side."""
    with torch.no_grad():
        return side_outputs(model, ran.batch[side], hidden=LAYER).hidden_BTD[ran.batch[side]["label_mask"]]


def entropy(model: Any, ran: Any) -> float:
    with torch.no_grad():
        out = label_outputs(model, ran.batch["forget"])
    return float(-token_statistics(out.logits_BNV, out.label_BN).mu_BN[out.mask_BN].mean())


def forgets(ran: Any) -> None:
    assert change(ran, "forget") < -0.05


def learns_alternates(ran: Any) -> None:
    assert change(ran, "alternate") > 0.05


def prefers_alternates(ran: Any) -> None:
    assert change(ran, "alternate") > change(ran, "forget") + 0.05


def learns_retain(ran: Any) -> None:
    assert change(ran, "retain") > 0


def retains_while_forgetting(ran: Any) -> None:
    assert change(ran, "forget") < -0.02
    assert change(ran, "retain") > change(ran, "forget") + 0.02


def steers_states(ran: Any) -> None:
    """The states are nearer to the control vector's direction than before."""
    control_D = ran.trainer.objective.given(torch.device("cpu"))["control_D"]
    now, then = (
        float(cosine_similarity(hidden(model, ran, "forget"), control_D).mean())
        for model in (ran.model, ran.before)
    )
    assert now > then + 0.02


def turns_states(ran: Any) -> None:
    """The forget states turn away from their old directions, more than the retain states."""
    turned = [
        float(cosine_similarity(hidden(ran.model, ran, s), hidden(ran.before, ran, s)).mean())
        for s in ("forget", "retain")
    ]
    assert turned[0] < min(0.99, turned[1])


def knows_nothing(ran: Any) -> None:
    assert entropy(ran.model, ran) > entropy(ran.before, ran) + 0.005


def flattens(ran: Any) -> None:
    def margin(model: Any) -> float:
        with torch.no_grad():
            out = label_outputs(model, ran.batch["forget"])
        return float((out.logits_BNV.amax(-1) - out.logits_BNV.mean(-1))[out.mask_BN].mean())

    assert margin(ran.model) < margin(ran.before) - 0.05


def shrinks(ran: Any) -> None:
    total = [
        sum(float(p.detach().abs().sum()) for p in model.parameters()) for model in (ran.model, ran.before)
    ]
    assert total[0] < total[1]


def lowers_its_loss(ran: Any) -> None:
    name = ran.trainer.objective.terms[0].name
    values = [record[name] for record in ran.trainer.state.log_history if name in record]
    assert values[-1] < values[0]


def erases_and_learns_alternates(ran: Any) -> None:
    lowers_its_loss(ran)
    learns_alternates(ran)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], None]]] = {
    "GradAscent": ("grad_ascent:grad_ascent", {}, forgets),
    "GradDiff": ("grad_diff:grad_diff", {}, retains_while_forgetting),
    "NPO": ("npo:npo", {}, forgets),
    "SimNPO": ("simnpo:simnpo", {"gamma": 1.0}, forgets),
    "DPO, AltPO": ("dpo:dpo", {}, prefers_alternates),
    "WGA": ("wga:wga", {}, forgets),
    "SatImp": ("satimp:satimp", {}, forgets),
    "UNDIAL": ("undial:undial", {}, forgets),
    "CEU": ("ceu:ceu", {}, forgets),
    "PDU": ("pdu:pdu", {"retain_loss_eps": 0.3}, flattens),
    "FT": ("finetune:finetune", {}, learns_retain),
    "l1_sparse": ("l1_sparse:l1_sparse", {"alpha_l1": 1.0}, shrinks),
    "RL": ("rl:rl", {}, learns_alternates),
    "CL": ("cl:cl", {}, learns_alternates),
    "KL": ("forget_kl:forget_kl", {"gamma": 1.0}, lowers_its_loss),
    "RMU": ("rmu:rmu", {"module_regex": LAYER}, steers_states),
    "AdaptiveRMU": ("adaptive_rmu:adaptive_rmu", {"module_regex": LAYER}, steers_states),
    "RR": ("rr:rr", {"module_regex": [LAYER]}, turns_states),
    "ME+GD": ("me:me", {"gamma": 1.0}, knows_nothing),
    "GRU": ("grad_ascent:grad_ascent", {"retain": "nll", "combine": "gru"}, retains_while_forgetting),
    "ELM": ("elm:elm", {"concept": "novels", "eta": 5.0, "top_k": None}, erases_and_learns_alternates),
    "ELM without its fluency term": (
        "elm:elm",
        {"concept": "novels", "eta": 5.0, "top_k": None, "fluency": 0.0},
        lowers_its_loss,
    ),
    "GA+FT over epochs": (
        "grad_diff:grad_diff",
        {"alpha": 1.0, "schedule": "ramp"},
        retains_while_forgetting,
    ),
    "NPO with combined gradients": ("npo:npo", {"combine": "gru"}, forgets),
}


@pytest.fixture(scope="module")
def learned(tiny_model: Any) -> Any:
    """A model, trained on the forget and retain rows until it knows them."""
    data = task()
    batch = PairCollator(PAD)([data[row] for row in range(len(data))])
    model = tiny_model(seed=1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(25):
        for side in ("forget", "retain"):
            out = label_outputs(model, batch[side])
            (-token_logp(out.logits_BNV, out.label_BN)[out.mask_BN].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_five_steps_change_what_the_method_claims(run: Any, learned: Any, name: str):
    handler, args, claim = CASES[name]
    ran = run(f"expunge.methods.{handler}", args, steps=5, learning_rate=3e-3, model=copy.deepcopy(learned))
    assert ran.trainer.state.global_step == 5
    claim(ran)
