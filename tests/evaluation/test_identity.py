"""When saved tables serve another model or other rows: equal numbers matter, names do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROPE = {"rope_type": "default", "rope_theta": 50.0}


def forward_tokens(scores: Any, kind: str = "tokens") -> int:
    return int(scores.about["cost"].get(kind, {}).get("forward_tokens", 0))


def test_equal_weights_under_another_configuration_are_another_model(
    evaluate: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """The base of the rotary positions is not a tensor, but it changes the numbers."""
    first = evaluate(tmp_path, suite="tofu")
    second = evaluate(tmp_path, suite="tofu", model=tiny_model(rope_parameters=ROPE))
    assert forward_tokens(second) == forward_tokens(first) > 0
    assert second.aggregates()["forget_Q_A_Prob"] != pytest.approx(
        first.aggregates()["forget_Q_A_Prob"], rel=1e-3
    )


def test_what_ends_a_generation_is_part_of_the_model(evaluate: Any, tiny_model: Any, tmp_path: Path) -> None:
    first = evaluate(tmp_path, suite="tofu")
    model = tiny_model()
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, 40]
    assert (
        forward_tokens(evaluate(tmp_path, suite="tofu", model=model), "generations")
        == forward_tokens(first, "generations")
        > 0
    )


def test_a_name_or_a_folder_is_no_part_of_the_model(evaluate: Any, tiny_model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    first = evaluate(tmp_path / "run", suite="tofu")
    tiny_model().save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sdpa").eval()
    again = evaluate(tmp_path / "run", suite="tofu", model=loaded)
    assert again.from_files
    assert again.aggregates() == first.aggregates()


def test_an_edited_row_is_measured_again_and_the_other_views_are_not(
    evaluate: Any, tmp_path: Path, data_root: Path
) -> None:
    first = evaluate(tmp_path, suite="tofu")
    file = data_root / "tofu" / "forget10_perturbed.json"
    file.write_text(
        file.read_text().replace('"answer": "Ada Quill is a writer."', '"answer": "Ada Quill is a poet."')
    )
    second = evaluate(tmp_path, suite="tofu")
    assert 0 < forward_tokens(second) < forward_tokens(first)
    rows = [scores.metrics["forget_Q_A_Prob"]["value_by_index"] for scores in (first, second)]
    assert rows[1]["0"] != rows[0]["0"]
    assert rows[1]["1"] == pytest.approx(rows[0]["1"], rel=1e-4)


def test_a_row_whose_answer_has_no_labels_is_null_and_counted(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is over the three other rows; values that depend on the row are null as well."""
    from dataclasses import replace

    from expunge.evaluation import views

    real = views.encode_answers

    def cut(*args: Any, **kwargs: Any) -> Any:
        first, *rest = real(*args, **kwargs)
        return [replace(first, label_mask=(False,) * len(first), turn_end=None), *rest]

    monkeypatch.setattr(views, "encode_answers", cut)
    scores = evaluate(None)
    found = scores.metrics["forget_Q_A_Prob"]
    assert (found["n_scored"], found["n_unscored"]) == (3, 1)
    assert found["value_by_index"]["0"] == {"prob": None, "avg_loss": None}
    assert found["agg_value"] == pytest.approx(
        sum(found["value_by_index"][str(row)]["prob"] for row in (1, 2, 3)) / 3
    )
    for name in ("forget_truth_ratio", "extraction_strength", "exact_memorization"):
        assert scores.metrics[name]["n_unscored"] == 1
        assert scores.metrics[name]["value_by_index"]["0"]["score"] is None
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm"):
        assert scores.metrics[name]["n_unscored"] == 2  # one on each side
        assert scores.metrics[name]["agg_value"] is not None
