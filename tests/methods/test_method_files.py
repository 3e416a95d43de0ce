"""Every method's YAML builds its objective; a value without a default must be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import expunge
from expunge.config.validate import load_config
from expunge.core.errors import UserError
from expunge.methods.objective import build_objective

CONFIGS = Path(expunge.__file__).resolve().parents[2] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))
GIVEN = {"KL": {"gamma": 0.5}, "PDU": {"retain_loss_eps": 0.3}, "ELM": {"concept": "ships"}}
BUDGETS = {
    "WGA": (1e-5, 5),
    "SatImp": (1e-5, 5),
    "SatImp_open_unlearning": (1e-5, 5),
    "UNDIAL": (1e-4, None),
    "AltPO": (2e-5, 2),
    "RMU_WMDP": (5e-5, None),
    "ME_GD": (1e-5, 5),
    "RR": (1e-4, None),
}
COMPOSITES = {
    "GA_FT": ("grad_diff", "retain_nll"),
    "GA_KL": ("grad_diff", "retain_kl"),
    "CL_FT": ("cl", "retain_nll"),
    "CL_KL": ("cl", "retain_kl"),
    "NPO_FT": ("npo", "retain_nll"),
    "GA_FT_epoch": ("grad_diff", "retain_nll"),
    "GA_KL_epoch": ("grad_diff", "retain_kl"),
    "CL_FT_epoch": ("cl", "retain_nll"),
}


def read(name: str) -> dict[str, Any]:
    """A method's YAML, merged over the files that its defaults name."""
    tree = yaml.safe_load((CONFIGS / "trainer" / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {"args": {}, "method_args": {}}
    for node in (*(read(base) for base in tree.get("defaults", [])), tree):
        merged["handler"] = node.get("handler", merged.get("handler"))
        for key in ("args", "method_args"):
            merged[key] = {**merged[key], **(node.get(key) or {})}
    return merged


def test_all_methods_of_the_list_are_there():
    table = {
        "GradAscent",
        "GradDiff",
        "NPO",
        "SimNPO",
        "DPO",
        "AltPO",
        "RMU",
        "UNDIAL",
        "CEU",
        "WGA",
        "SatImp",
        "PDU",
        "FT",
        "l1_sparse",
        "RL",
        "CL",
        "KL",
    }
    assert table | set(COMPOSITES) | {
        "IdkNLL",
        "SatImp_open_unlearning",
        "AdaptiveRMU",
        "RMU_WMDP",
        "RR",
        "ME_GD",
        "GRU",
        "ELM",
    } <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_file_builds_its_objective(name: str):
    tree = read(name)
    args = {key: 1.0 if value == "???" else value for key, value in tree["method_args"].items()}
    objective = build_objective(tree["handler"], {**args, **GIVEN.get(name, {})})
    assert objective.terms[0].weight > 0
    assert all(need.name for need in objective.needs)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_own_budget_only_with_a_source(name: str):
    args = read(name)["args"]
    found = (args.get("learning_rate"), args.get("num_train_epochs"))
    # PyYAML reads 1e-5 as a string, hydra as a number.
    assert (None if found[0] is None else float(found[0]), found[1]) == BUDGETS.get(name, (None, None))
    if name in BUDGETS:
        text = (CONFIGS / "trainer" / f"{name}.yaml").read_text()
        assert "arXiv:" in text or "open-unlearning" in text


@pytest.mark.parametrize(("name", "terms"), COMPOSITES.items())
def test_composites_are_a_forget_term_and_a_retain_term_with_a_required_weight(
    name: str, terms: tuple[str, str]
):
    tree = read(name)
    assert tree["method_args"]["alpha"] == "???"
    objective = build_objective(tree["handler"], {**tree["method_args"], "alpha": 0.25})
    assert tuple(term.name for term in objective.terms) == terms
    assert [term.weight for term in objective.terms] == [1.0, 0.25]
    assert (objective.schedule is not None) == name.endswith("_epoch")


def test_a_weight_that_is_not_given_is_refused():
    with pytest.raises(UserError, match=r"trainer\.method_args\.gamma"):
        build_objective(read("KL")["handler"], {})
    tree = read("GA_FT")
    with pytest.raises(UserError, match=r"method_args\.alpha is not given"):
        build_objective(tree["handler"], tree["method_args"])


def test_published_values():
    wmdp = build_objective(read("RMU_WMDP")["handler"], read("RMU_WMDP")["method_args"])
    assert [term.weight for term in wmdp.terms] == [1.0, 1200.0]
    assert wmdp.terms[0].kwargs["steering_coeff"] == 6.5
    variant = build_objective(
        read("SatImp_open_unlearning")["handler"], read("SatImp_open_unlearning")["method_args"]
    )
    assert [term.weight for term in variant.terms] == [0.1, 1.0]
    assert [term.weight for term in build_objective(read("SatImp")["handler"], {}).terms] == [1.0, 0.1]
    circuit = build_objective(read("RR")["handler"], read("RR")["method_args"])
    assert [term.name for term in circuit.terms] == ["rr", "retain_rr_retain"]
    assert circuit.schedule is not None


def test_a_missing_weight_and_an_unknown_schedule_are_reported_before_anything_is_loaded(
    tmp_path: Path,
):
    common = ["experiment=unlearn/mini/default", "task_name=x", "eval=null", f"paths.output_dir={tmp_path}"]
    with pytest.raises(UserError) as error:
        load_config("unlearn", [*common, "trainer=GA_FT"])
    assert [fault.message for fault in error.value.faults] == ["trainer.method_args.alpha is not given"]
    with pytest.raises(UserError, match="did you mean 'ramp'"):
        load_config("unlearn", [*common, "trainer=NPO", "trainer.method_args.schedule=rampp"])
    with pytest.raises(UserError, match="GRU takes no 'emma'"):
        load_config("unlearn", [*common, "trainer=NPO", "combine=gru", "trainer.method_args.combine.emma=1"])


def test_forget_term_retain_term_schedule_and_combination_are_chosen_freely(tmp_path: Path):
    choices = ["trainer=SimNPO", "retain=kl", "schedule=switch", "combine=gru", "compat=open_unlearning"]
    cfg = load_config(
        "unlearn",
        [
            "experiment=unlearn/mini/default",
            "task_name=x",
            "eval=null",
            f"paths.output_dir={tmp_path}",
            *choices,
        ],
    )
    objective = build_objective(cfg.get("trainer.handler"), cfg.section("trainer.method_args"), cfg.switches)
    assert [term.name for term in objective.terms] == ["simnpo", "retain_kl"]
    assert objective.terms[1].places == "all"
    assert objective.schedule is not None
    assert objective.combination is not None
