"""The retain model's logs: ours and open-unlearning's, correct and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import UserError
from expunge.core.files import write_json
from expunge.evaluation.retain_logs import RetainLogs


@pytest.fixture
def retain_file(evaluate: Any, tiny_model: Any, tmp_path: Path) -> Path:
    """The file of our own evaluation of another model."""
    evaluate(tmp_path / "retain", model=tiny_model(seed=5))
    return tmp_path / "retain" / "TOFU_EVAL.json"


@pytest.fixture
def theirs(retain_file: Path, tmp_path: Path) -> Any:
    """The same in open-unlearning's form: no `_about`, only `agg_value` and `value_by_index`."""

    def build(**changes: Any) -> Path:
        data = json.loads(retain_file.read_text())
        data.pop("_about")
        for node in data.values():
            for key in ("interval", "n_scored", "n_unscored"):
                node.pop(key, None)
        data |= changes
        write_json(tmp_path / "theirs.json", data)
        return tmp_path / "theirs.json"

    return build


def test_with_logs_every_comparison_has_a_value(
    evaluate: Any, retain_file: Path, tiny_model: Any, theirs: Any
) -> None:
    scores = evaluate(None, f"retain_logs_path={retain_file}")
    assert set(scores.reasons()) == {"gibberish"}
    quality = scores.metrics["forget_quality"]
    assert quality["interval"]["of"] == "D"
    assert quality["interval"]["low"] <= quality["D"] <= quality["interval"]["high"]
    assert scores.metrics["privleak"]["reference_is_chance"] is False
    assert evaluate(None, f"retain_logs_path={theirs()}").aggregates() == scores.aggregates()
    assert (
        evaluate(None, f"retain_logs_path={retain_file.parent}").aggregates() == scores.aggregates()
    )  # a folder will do
    itself = evaluate(None, f"retain_logs_path={retain_file}", model=tiny_model(seed=5))
    assert (itself.aggregates()["forget_quality"], itself.aggregates()["privleak"]) == (1.0, 0.0)


def test_new_logs_under_the_old_name_are_read_again(
    evaluate: Any, retain_file: Path, tmp_path: Path, tiny_model: Any
) -> None:
    first = evaluate(tmp_path / "run", f"retain_logs_path={retain_file}")
    evaluate(retain_file.parent, model=tiny_model(seed=6))
    assert (
        evaluate(tmp_path / "run", f"retain_logs_path={retain_file}").aggregates()["privleak"]
        != first.aggregates()["privleak"]
    )


def test_logs_that_are_not_there_are_an_error_not_a_default(evaluate: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(UserError, match="no such file") as caught:
            evaluate(tmp_path / "run", f"retain_logs_path={path}")
        assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_logs(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    write_json(tmp_path / "b.json", {"accuracy": 3})
    with pytest.raises(UserError, match="not valid JSON"):
        evaluate(None, f"retain_logs_path={tmp_path / 'a.json'}")
    with pytest.raises(UserError, match="has no metric"):
        evaluate(None, f"retain_logs_path={tmp_path / 'b.json'}")


def test_logs_of_another_split_or_template(evaluate: Any, retain_file: Path, theirs: Any) -> None:
    with pytest.raises(UserError, match="is of forget10, this run is of forget05"):
        evaluate(None, "forget_split=forget05", f"retain_logs_path={retain_file}")
    with pytest.raises(UserError, match="4 rows, this run has 2"):
        evaluate(None, "forget_split=forget05", f"retain_logs_path={theirs()}")
    with pytest.raises(UserError, match="another template"):
        evaluate(None, f"retain_logs_path={retain_file}", system_prompt="Be verbose.")


def test_logs_with_fewer_rows_are_refused_before_the_model_runs(
    evaluate: Any, retain_file: Path, theirs: Any, tiny_model: Any
) -> None:
    ratios = json.loads(retain_file.read_text())["forget_Q_A_PARA_Prob"]
    ratios["value_by_index"].pop("3")
    model = tiny_model()
    model.forward = None
    with pytest.raises(UserError, match="3 rows, this run has 4"):
        evaluate(None, f"retain_logs_path={theirs(forget_Q_A_PARA_Prob=ratios)}", model=model)


def test_logs_of_other_rows_are_known_by_their_ids_or_their_answers(
    evaluate: Any, retain_file: Path, theirs: Any, data_root: Path
) -> None:
    other = theirs()
    for name in ("forget10", "forget10_perturbed"):
        path = data_root / "tofu" / f"{name}.json"
        path.write_text(path.read_text().replace("is a writer.", "is not a writer."))
    with pytest.raises(UserError, match="4 of 4 rows"):
        evaluate(None, f"retain_logs_path={retain_file}")
    with pytest.raises(UserError, match="4 of 4 answers"):
        evaluate(None, f"retain_logs_path={other}")


def test_a_metric_that_the_logs_lack_is_null_with_the_reason(evaluate: Any, theirs: Any) -> None:
    scores = evaluate(
        None,
        f"retain_logs_path={theirs(forget_truth_ratio={'agg_value': 0.5}, mia_min_k={'agg_value': None})}",
    )
    assert "has no forget_truth_ratio" in scores.reasons()["forget_quality"]
    assert "has no value of mia_min_k" in scores.reasons()["privleak"]


def test_integer_like_and_text_keys_and_null_scores(tmp_path: Path) -> None:
    """JSON keys are texts, in any order; an unscored row is null."""
    write_json(
        tmp_path / "a.json",
        {"m": {"agg_value": 1.0, "value_by_index": {"1": {"score": None}, "0": {"score": 2}}}},
    )
    column_R = RetainLogs.read(tmp_path / "a.json", "tofu").column("m", "score", ["a", "b"])
    assert column_R[0] == 2.0
    assert np.isnan(column_R[1])
    with pytest.raises(UserError, match="lacks 'prob'"):
        RetainLogs.read(tmp_path / "a.json", "tofu").column("m", "prob", ["a", "b"])
