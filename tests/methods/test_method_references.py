"""A method that reads no reference model makes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_method_files import GIVEN, METHODS, read

from expunge.methods.objective import build_objective
from expunge.models.reference import plan_reference

# Taken from the papers' formulas, not from the signatures. Frozen = the method reads whole distributions or
# hidden states of the reference.
CACHED = {"NPO", "NPO_FT", "DPO", "AltPO"}
FROZEN = {"UNDIAL", "KL", "GA_KL", "GA_KL_epoch", "CL_KL", "RMU", "RMU_WMDP", "AdaptiveRMU", "RR", "ELM"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_reference_only_if_its_formula_has_one(name: str):
    tree = read(name)
    args = {key: 1.0 if value == "???" else value for key, value in tree["method_args"].items()}
    objective = build_objective(tree["handler"], {**args, **GIVEN.get(name, {})})
    expected = "cached" if name in CACHED else "frozen" if name in FROZEN else "none"
    assert plan_reference(objective.needs) == expected


def test_a_term_of_weight_zero_asks_for_no_reference():
    """With the retain term `kl` at weight 0, GradDiff needs no reference."""
    args: dict[str, Any] = {"alpha": 0.0, "retain": {"handler": "expunge.methods.retain:kl"}}
    assert plan_reference(build_objective("expunge.methods.grad_diff:grad_diff", args).needs) == "none"
    assert (
        plan_reference(build_objective("expunge.methods.grad_diff:grad_diff", {**args, "alpha": 1.0}).needs)
        == "frozen"
    )


def test_a_run_of_a_method_without_reference_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run of WGA makes neither a copy of the model nor a table of its log-probs."""
    from expunge.config.validate import load_config
    from expunge.models import adapter_reference, reference
    from expunge.pipelines.training_run import run_training

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a reference was made")

    monkeypatch.setattr(adapter_reference, "FrozenCopy", refuse)
    monkeypatch.setattr(reference.CachedReference, "compute", refuse)
    common = ["experiment=unlearn/mini/default", "trainer.args.max_steps=1", "eval=null"]
    run = [*common, "task_name=wga", f"paths.output_dir={tmp_path / 'wga'}", "trainer=WGA"]
    run_training(load_config("unlearn.yaml", run))
    assert not (tmp_path / "wga" / "reference").exists()
    with pytest.raises(AssertionError, match="a reference was made"):
        run_training(
            load_config(
                "unlearn.yaml",
                [*common, "task_name=npo", f"paths.output_dir={tmp_path / 'npo'}", "trainer=NPO"],
            )
        )
