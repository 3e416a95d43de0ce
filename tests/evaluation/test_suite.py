"""The shipped suites on a handful of rows: files, caches, planning, and and the messages of faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import UserError
from expunge.data.template import Template
from expunge.evaluation import evaluate as evaluate_module
from expunge.evaluation.collect import generations as generations_module
from expunge.evaluation.collect import tokens as tokens_module
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.suite import prepare_suite

NINE = [
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
]


def passes(scores: Any) -> dict[str, int]:
    """Tokens through the model by kind of table; cached kinds are left out."""
    return {kind: cost["forward_tokens"] for kind, cost in scores.about["cost"].items()}


def test_a_run_writes_the_fields_two_files_and_ours_beside(evaluate: Any, tmp_path: Path) -> None:
    scores = evaluate(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "TOFU_SUMMARY.json").read_text())
    details = json.loads((tmp_path / "run" / "TOFU_EVAL.json").read_text())
    assert summary == scores.aggregates()
    assert list(summary) == [
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_truth_ratio",
        "forget_quality",
        "extraction_strength",
        "exact_memorization",
        "mia_min_k",
        "privleak",
        "mia_loss",
        "mia_zlib",
        "mia_min_k_plus_plus",
        "mia_gradnorm",
        "mia_reference",
        "gibberish",
        "model_utility",
    ]
    assert {name for name, value in summary.items() if value is None} == {
        "forget_quality",
        "privleak",
        "mia_reference",
        "gibberish",
    }
    assert scores.reasons()["gibberish"] == "no classifier path"
    assert details["forget_quality"] == {"agg_value": None, "reason": "no retain_logs_path"}
    probability = details["forget_Q_A_Prob"]
    assert list(probability["value_by_index"]) == ["0", "1", "2", "3"]
    assert probability["agg_value"] == pytest.approx(
        sum(row["prob"] for row in probability["value_by_index"].values()) / 4
    )
    assert (probability["n_scored"], probability["n_unscored"]) == (4, 0)
    assert probability["interval"]["low"] <= probability["agg_value"] <= probability["interval"]["high"]
    assert details["mia_loss"]["auc"] == details["mia_loss"]["agg_value"]
    assert len(details["forget_Q_A_PERT_Prob"]["value_by_index"]["0"]["prob"]) == 2
    assert list(details["model_utility"]["parts"]) == NINE
    assert details["_about"]["row_ids"]["mia_loss.forget"] == details["_about"]["views"]["forget"]["row_ids"]


def test_tofu_is_tofu_full_without_the_attacks(evaluate: Any) -> None:
    small, full = evaluate(None, suite="tofu"), evaluate(None)
    assert list(small.aggregates()) == [
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_truth_ratio",
        "forget_quality",
        "extraction_strength",
        "privleak",
        "model_utility",
    ]
    assert all(full.metrics[name]["agg_value"] == value for name, value in small.aggregates().items())
    assert set(small.metrics) < set(full.metrics)
    assert "gradnorms" not in passes(small)


def test_the_union_of_the_views_goes_through_the_model_once(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real authors are the first two forget rows, the attacks use all four: 52 examples, 36 unique."""
    calls: list[int] = []
    real = tokens_module.label_outputs

    def counted(model: Any, side: Any, **kwargs: Any) -> Any:
        calls.append(int(side["attention_mask"].sum()))
        return real(model, side, **kwargs)

    monkeypatch.setattr(tokens_module, "label_outputs", counted)
    scores = evaluate(None)
    cost = scores.about["cost"]["tokens"]
    # Requested: forget and retain 4 x (1 + 1 + 2) each, 2 x (1 + 2) twice, the attacks' 4 + 4. Unique: 16
    # + 16 + holdout 4.
    assert (cost["examples"], cost["unique"]) == (52, 36)
    assert sum(calls) == cost["forward_tokens"]


def test_the_order_of_the_norm_reaches_the_collector(evaluate: Any, tmp_path: Path) -> None:
    """A sum of absolute values is larger than the root of the sum of squares; and the tables differ."""
    two = evaluate(tmp_path)
    one = evaluate(tmp_path, "+eval.tofu.metrics.mia_gradnorm.p=1")
    norms = [
        [row["score"] for row in found.metrics["mia_gradnorm"]["forget"]["value_by_index"].values()]
        for found in (one, two)
    ]
    assert all(large > 2 * small > 0 for large, small in zip(*norms, strict=True))
    assert (one.metrics["mia_gradnorm"]["p"], two.metrics["mia_gradnorm"]["p"]) == (1, 2.0)
    assert set(passes(one)) == {"gradnorms"}


def test_a_suite_is_encoded_once_for_many_models(
    tiny_model: Any, tiny_tokenizer: Any, suite_cfg: Any, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = suite_cfg()
    template = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    encoded: list[str] = []
    real = template.encode

    def counted(question: str, answer: str, *args: Any, **kwargs: Any) -> Any:
        encoded.append(answer)
        return real(question, answer, *args, **kwargs)

    monkeypatch.setattr(template, "encode", counted)
    suite = prepare_suite(
        "tofu", cfg.section("eval.tofu"), template=template, data_root=data_root, switches=cfg.switches
    )
    assert not encoded
    suite.views.encode()
    once = len(encoded)
    models = [tiny_model(seed=seed) for seed in range(2)]
    assert once > 0
    scores = [evaluate_suite(suite, model, out_dir=None) for model in models]
    assert len(encoded) == once
    assert scores[0].aggregates() != scores[1].aggregates()


def test_what_was_collected_before_an_interruption_is_kept_view_by_view(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(tmp_path / "whole")
    real, views = generations_module.collect_generations, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        views.append(1)
        if len(views) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(generations_module, "collect_generations", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "run")
    rest = evaluate(tmp_path / "run")
    assert 0 < passes(rest)["generations"] < passes(first)["generations"]
    assert "tokens" not in passes(rest)
    assert rest.aggregates() == first.aggregates()


def test_the_same_evaluation_again_runs_no_model(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    first = evaluate(tmp_path / "run")
    assert min(passes(first).values()) > 0
    model = tiny_model()
    monkeypatch.setattr(model, "forward", None)
    again = evaluate(tmp_path / "run", model=model)
    assert again.from_files
    assert again.aggregates() == first.aggregates()
    # Without the result files, the tables serve; other metrics of the same tables need no model either.
    (tmp_path / "run" / "TOFU_EVAL.json").unlink()
    again = evaluate(tmp_path / "run", "eval.tofu.metrics.mia_min_k.k=0.9", model=model)
    assert not again.from_files
    assert passes(again) == {}
    assert again.metrics["mia_min_k"] != first.metrics["mia_min_k"]
    assert again.metrics["forget_truth_ratio"] == first.metrics["forget_truth_ratio"]


def test_changed_inputs_are_computed_again(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """In one folder, another model, split, dtype, template, setting or code gets its own tables."""
    first = evaluate(tmp_path)
    probability = first.metrics["forget_Q_A_Prob"]["agg_value"]

    def run(*overrides: str, **kwargs: Any) -> Any:
        return evaluate(tmp_path, *overrides, **kwargs)

    other = run(model=tiny_model(seed=1))
    assert passes(other) == passes(first)
    assert other.metrics["forget_Q_A_Prob"]["agg_value"] != probability
    assert (
        run().metrics["forget_Q_A_Prob"]["agg_value"] == probability
    )  # back to the first: its tables are still there
    split = run("forget_split=forget05")
    assert len(split.metrics["forget_Q_A_Prob"]["value_by_index"]) == 2
    assert split.about["views"]["holdout"]["name"] == "holdout05"
    half = run(model=tiny_model().to(torch.bfloat16))
    assert half.metrics["forget_Q_A_Prob"]["agg_value"] != probability
    assert run(compute_dtype=torch.bfloat16).metrics["forget_Q_A_Prob"]["agg_value"] != probability
    assert run(system_prompt="Be verbose.").metrics["forget_Q_A_Prob"]["agg_value"] != probability
    assert passes(run("eval.tofu.generation.max_new_tokens=5")) == {
        "generations": passes(first)["generations"]
    }
    monkeypatch.setattr(evaluate_module, "code_version", lambda: "edited")
    assert passes(run()) == passes(first)
    assert passes(run("eval.tofu.overwrite=true")) == passes(first)


def test_a_damaged_table_is_made_again(evaluate: Any, tmp_path: Path) -> None:
    first = evaluate(tmp_path)
    for path in (tmp_path / "tables").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "TOFU_EVAL.json").write_text("{")
    again = evaluate(tmp_path)
    assert passes(again) == passes(first)
    assert again.aggregates() == first.aggregates()


def test_a_model_that_is_changed_in_place_is_another_model(
    evaluate: Any, tmp_path: Path, tiny_model: Any
) -> None:
    model = tiny_model()
    first = evaluate(tmp_path, model=model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert evaluate(tmp_path, model=model).aggregates() != first.aggregates()


def test_without_a_holdout_split_the_attacks_are_null_with_the_reason(evaluate: Any) -> None:
    scores = evaluate(None, "eval.tofu.holdout_split=null")
    reasons = scores.reasons()
    assert reasons["mia_loss"] == "there is no view holdout: its hf_args.name is null"
    assert reasons["privleak"] == "mia_min_k is null: there is no view holdout: its hf_args.name is null"
    assert scores.metrics["extraction_strength"]["agg_value"] is not None


def test_a_metric_can_be_left_out(evaluate: Any) -> None:
    scores = evaluate(None, "~eval.tofu.metrics.mia_gradnorm", "~eval.tofu.metrics.forget_Q_A_ROUGE")
    assert "mia_gradnorm" not in scores.metrics
    assert "gradnorms" not in passes(scores)


def test_all_faults_of_a_suite_are_reported_together(evaluate: Any, suite_cfg: Any) -> None:
    node = suite_cfg().section("eval.tofu")
    node["metrics"]["mia_min_k"]["kk"] = 0.3
    node["metrics"]["mia_loss"]["forget"] = "forgets"
    node["metrics"]["forget_truth_ratio"]["correct"] = "forget_Q_A_PARA"
    node["metrics"]["extraction_strength"]["handler"] = (
        "expunge.evaluation.metrics.extraction_strength:extraction_strenght"
    )
    node["metrics"]["exact_memorization"] = {
        "handler": "expunge.evaluation.metrics.exact_memorization:exact_memorization"
    }
    with pytest.raises(UserError) as caught:
        evaluate(None, node=node)
    found = [str(fault) for fault in caught.value.faults]
    assert len(found) == 5
    for name in (
        "'kk'",
        "did you mean 'forget'",
        "unknown metric 'forget_Q_A_PARA'",
        "did you mean 'extraction_strength'",
        "exact_memorization.answers is not given",
    ):
        assert any(name in line for line in found), name


def test_metrics_in_a_circle_and_rows_that_are_not_there(
    evaluate: Any, suite_cfg: Any, data_root: Path
) -> None:
    node = suite_cfg().section("eval.tofu")
    node["metrics"]["ra_Q_A_Prob_normalised"]["correct"] = "ra_Q_A_Prob_normalised"
    with pytest.raises(UserError, match=r"circle.*ra_Q_A_Prob_normalised"):
        evaluate(None, node=node)
    (data_root / "tofu" / "world_facts_perturbed.json").unlink()
    (data_root / "tofu" / "real_authors_perturbed.json").unlink()
    with pytest.raises(UserError) as caught:
        evaluate(None)
    assert {"world_facts" in str(fault) for fault in caught.value.faults} == {
        True,
        False,
    }  # both are reported


def test_a_row_without_the_key_is_reported(evaluate: Any, tmp_path: Path, data_root: Path) -> None:
    path = data_root / "tofu" / "holdout10.json"
    path.write_text(path.read_text().replace('"answer"', '"anwser"', 1))
    with pytest.raises(UserError, match="row 0"):
        evaluate(tmp_path / "run")
    assert not (tmp_path / "run" / "TOFU_EVAL.json").exists()
