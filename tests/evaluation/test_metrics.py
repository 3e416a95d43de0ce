"""Each metric against hand-worked numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from expunge.core.files import write_json
from expunge.evaluation.metrics.exact_memorization import exact_memorization
from expunge.evaluation.metrics.extraction_strength import extraction_strength
from expunge.evaluation.metrics.forget_quality import forget_quality
from expunge.evaluation.metrics.gibberish import gibberish
from expunge.evaluation.metrics.mia_gradnorm import mia_gradnorm
from expunge.evaluation.metrics.mia_loss import mia_loss
from expunge.evaluation.metrics.mia_min_k import mia_min_k
from expunge.evaluation.metrics.mia_min_k_plus_plus import mia_min_k_plus_plus
from expunge.evaluation.metrics.mia_reference import mia_reference
from expunge.evaluation.metrics.mia_zlib import mia_zlib
from expunge.evaluation.metrics.model_utility import model_utility
from expunge.evaluation.metrics.perplexity import perplexity
from expunge.evaluation.metrics.privleak import privleak
from expunge.evaluation.metrics.probability import probability
from expunge.evaluation.metrics.probability_w_options import probability_w_options
from expunge.evaluation.metrics.rel_diff import rel_diff
from expunge.evaluation.metrics.rouge import rouge
from expunge.evaluation.metrics.truth_ratio import truth_ratio
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import GenerationTable, GradNormTable, TokenTable

Tokens = Callable[..., TokenTable]
L = math.log


def test_probability_counts_the_end_of_the_turn_and_averages_answers_before_rows(tokens: Tokens) -> None:
    """Row 0: answers (.5 x .125)^(1/2) = .25 and 1, mean .625. Row 1: one answer, .5. Mean of rows: .5625."""
    found = probability(tokens([[L(0.5), L(0.125)], [0.0], [L(0.5)] * 3], answers=[2, 1]))
    assert found.value == pytest.approx(0.5625)
    rows = found.by_index()
    assert rows["0"]["prob"] == pytest.approx([0.25, 1.0])
    assert rows["0"]["avg_loss"] == pytest.approx([-L(0.25), 0.0], abs=1e-6)
    assert rows["1"]["prob"] == pytest.approx([0.5])  # no place for the answer that it does not have


def test_a_row_without_labels_is_unscored_and_does_not_spoil_the_mean(tokens: Tokens) -> None:
    found = replace(probability(tokens([[L(0.5)], []])), name="p").as_json()
    assert found["agg_value"] == pytest.approx(0.5)
    assert (found["n_scored"], found["n_unscored"]) == (1, 1)
    assert found["value_by_index"]["1"] == {"prob": None, "avg_loss": None}
    nothing = probability(tokens([[]])).as_json()
    assert (nothing["agg_value"], nothing["reason"]) == (None, "no row is scored")


def test_probability_with_options(tokens: Tokens) -> None:
    """.5 / (.5 + .25 + .25); 0 through eps, if all probabilities are 0."""
    correct = probability(tokens([[L(0.5)], [-100.0]]))
    wrong = probability(tokens([[L(0.25)]] * 2 + [[-100.0]] * 2, answers=[2, 2]))
    found = probability_w_options(correct, wrong)
    assert found.columns["prob"] == pytest.approx([0.5, 0.0], abs=1e-9)
    assert found.value == pytest.approx(0.25)
    assert probability_w_options(correct, wrong, eps=0.0).columns["prob"][1] == pytest.approx(1 / 3)


def _ratio(tokens: Tokens, correct: float, wrong: list[float], **options: Any) -> Result:
    return truth_ratio(
        probability(tokens([[L(correct)]])),
        probability(tokens([[L(value)] for value in wrong], answers=[len(wrong)])),
        **options,
    )


def test_truth_ratio(tokens: Tokens) -> None:
    """Wrong answers .5 and .125: geometric mean .25, arithmetic .3125; right answer .5, so R = .5 or .625."""
    wrong = [0.5, 0.125]
    assert _ratio(tokens, 0.5, wrong).columns["score"] == pytest.approx([0.5])
    assert _ratio(tokens, 0.5, wrong).value == pytest.approx(0.5)
    assert _ratio(tokens, 0.125, wrong).columns["score"] == pytest.approx([2.0])
    assert _ratio(tokens, 0.125, wrong).value == pytest.approx(0.5)  # min(2, 1/2)
    assert _ratio(tokens, 0.5, wrong, aggregate="true_better").value == pytest.approx(0.5)
    assert _ratio(tokens, 0.125, wrong, aggregate="true_better").value == 0.0
    assert _ratio(tokens, 0.5, wrong, aggregate="prob_mean").value == pytest.approx(0.5 / 0.75)
    assert _ratio(tokens, 0.5, wrong, wrong_mean="arithmetic").value == pytest.approx(0.625)
    assert _ratio(tokens, 0.5, wrong).columns["log_ratio"] == pytest.approx([L(0.5)])


def test_a_dead_model_looks_forgotten_without_eps_only(tokens: Tokens) -> None:
    """Mean nll 40 for all answers: R = e^-40 / (e^-40 + 1e-10) is near 0; in the authors' form it is 1."""
    dead = [math.exp(-40)] * 2
    assert _ratio(tokens, dead[0], dead).value == pytest.approx(math.exp(-40) / 1e-10, rel=1e-5)
    assert _ratio(tokens, dead[0], dead, eps=0.0).value == pytest.approx(1.0)
    # exp(-2000) is 0 in floats; the logarithm is still exact.
    found = truth_ratio(probability(tokens([[-2000.0]])), probability(tokens([[-2001.0]])), eps=0.0)
    assert found.value == pytest.approx(math.exp(-1))


def test_rouge(examples: Any) -> None:
    """Recall of the longest common subsequence: "the cat sat" for "the cat" 2/2, "the cat" for "a dog" 0.

    Words are stemmed: cats = cat.
    """
    table = GenerationTable(
        examples([1] * 4, ["the cat", "a dog", "cats", "..."]),
        ("q",) * 4,
        ("the cat sat", "the cat", "cat", "x"),
    )
    found = rouge(table)
    assert found.columns["rougeL_recall"][:3] == pytest.approx([1.0, 0.0, 1.0])
    assert found.columns["rougeL_f1"][0] == pytest.approx(0.8)  # precision 2/3, recall 1
    assert found.value == pytest.approx(2 / 3)
    assert found.statistic is not None
    assert found.statistic.scored() == (3, 1)  # an answer without words has no recall
    assert rouge(table, variant="rougeL_f1").value == pytest.approx((0.8 + 0 + 1) / 3)
    assert found.by_index()["1"]["generation"] == "the cat"


@pytest.mark.parametrize(
    ("hits", "strength", "floored"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 1, 0, 1], 0.25, 0.25),
        ([1, 1, 1, 0], 0.0, 0.25),
        ([1, 0, 0, 0], 0.0, 0.25),
    ],
)
def test_extraction_strength(hits: list[int], strength: float, floored: float, tokens: Tokens) -> None:
    """1 - k/4, k = index after the last miss; the field stops at k = 3. The turn end does not count."""
    table = tokens([[0.0] * 5], hit=[[bool(hit) for hit in hits] + [False]])
    assert extraction_strength(table).value == strength
    assert extraction_strength(table, floor=True).value == floored


def test_exact_memorization_leaves_the_end_of_the_turn_out(tokens: Tokens) -> None:
    table = tokens([[0.0] * 4, [0.0]], hit=[[True, False, True, False], [True]])
    found = exact_memorization(table)
    assert found.value == pytest.approx(2 / 3)
    assert found.by_index()["1"] == {"score": None}  # nothing but the end of the turn


def test_an_answer_that_was_cut_has_no_end_of_turn_to_leave_out(tokens: Tokens) -> None:
    table = tokens([[0.0] * 4], hit=[[True, True, True, False]], ends=False)
    assert exact_memorization(table).value == pytest.approx(0.75)
    assert extraction_strength(table).value == 0.0


def test_attacks_by_loss_and_least_likely_tokens(tokens: Tokens) -> None:
    """Five tokens and the end: min-k takes floor(.4 x 5) = 2, -4 and -3; the loss is (1+2+3+4+0+8)/6 = 3."""
    table = tokens([[-1.0, -2.0, -3.0, -4.0, 0.0, -8.0]], mu=-1.0, var=4.0)
    likely = tokens([[-0.5] * 6], mu=-1.0, var=4.0)
    loss, min_k, plus = mia_loss(likely, table), mia_min_k(likely, table), mia_min_k_plus_plus(likely, table)
    assert loss.parts["holdout"].columns["score"] == pytest.approx([3.0])
    assert min_k.parts["holdout"].columns["score"] == pytest.approx([3.5])
    assert plus.parts["holdout"].columns["score"] == pytest.approx([(3 / 2 + 2 / 2) / 2])  # -(logp + 1) / 2
    assert (loss.value, min_k.value, plus.value) == (1.0, 1.0, 1.0)  # forget rows are much likelier: members
    assert mia_loss(table, likely).value == 0.0
    assert mia_min_k(likely, table, k=0.01).parts["holdout"].columns["score"] == pytest.approx(
        [4.0]
    )  # at least one token
    floored = mia_min_k_plus_plus(tokens([[-1.0, 0.0]], var=0.0), table)
    assert floored.parts["forget"].columns["score"] == pytest.approx([1 / math.sqrt(1e-6)])


@pytest.mark.parametrize(("k", "expected"), [(0.4, 4.0), (0.6, 3.5), (0.9, 3.0)])
def test_min_k_rounds_the_number_of_tokens_down(k: float, expected: float, tokens: Tokens) -> None:
    """Of four tokens -1 to -4, floor(1.6) = 1, floor(2.4) = 2 and floor(3.6) = 3 are taken."""
    table = tokens([[-1.0, -2.0, -3.0, -4.0, 0.0]])
    assert mia_min_k(table, table, k=k).parts["forget"].columns["score"] == pytest.approx([expected])


def test_min_k_plus_plus_measures_each_token_before_it_takes_the_lowest(tokens: Tokens) -> None:
    """The most likely token has the lowest normalised score: (-1 - 0) / 1 < (-4 + 4) / 2 and (-3 + 2) / 2."""
    table = tokens([[-1.0, -4.0, -3.0, 0.0]])
    table = replace(
        table,
        mu_M=np.array([0.0, -4.0, -2.0, 0.0], np.float32),
        var_M=np.array([1.0, 4.0, 4.0, 1.0], np.float32),
    )
    for k, expected in ((0.4, 1.0), (0.7, (1 + 0.5) / 2), (1.0, (1 + 0.5 + 0) / 3)):
        found = mia_min_k_plus_plus(table, table, k=k)
        assert found.parts["forget"].columns["score"] == pytest.approx([expected])


def test_attack_by_compressed_size_leaves_blanks_around_the_text_out(tokens: Tokens) -> None:
    padded, bare = tokens([[-2.0]], texts=[" \n Ada Quill. \t "]), tokens([[-2.0]], texts=["Ada Quill."])
    found = mia_zlib(padded, bare)
    assert found.parts["forget"].columns["score"] == found.parts["holdout"].columns["score"]
    assert found.parts["forget"].columns["score"] == pytest.approx([2 / len(zlib.compress(b"Ada Quill."))])


def test_attack_by_compressed_size(tokens: Tokens) -> None:
    texts = ["a b c d e f g", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    found = mia_zlib(tokens([[-2.0]], texts=texts[:1]), tokens([[-2.0]], texts=texts[1:]))
    expected = [2.0 / len(zlib.compress(text.encode())) for text in texts]
    assert [found.parts[side].columns["score"][0] for side in ("forget", "holdout")] == pytest.approx(
        expected
    )
    assert found.as_json()["auc"] == found.value


def test_attack_by_gradient_norm(examples: Any) -> None:
    forget = GradNormTable(examples([1, 1]), np.array([1.0, 2.0]), np.array([9.0, 9.0]))
    holdout = GradNormTable(examples([1]), np.array([3.0]), np.array([1.0]))
    assert mia_gradnorm(forget, holdout).value == 1.0
    assert mia_gradnorm(forget, holdout, norm="mean_of_tensors").value == 0.0


def logs(path: Any, **metrics: Any) -> RetainLogs:
    write_json(path, metrics)
    return RetainLogs.read(path, "tofu")


def _score(values: list[float], name: str) -> Result:
    score_R = np.array(values)
    ids = tuple(f"row{row}" for row in range(len(values)))
    return Result(Mean(score_R), columns={"score": score_R}, row_ids=ids, name=name)


def test_forget_quality_is_the_p_value_and_its_interval_is_on_the_distance(tmp_path: Any) -> None:
    """4 against 4 rows without overlap: D = 1, p = 2 / C(8, 4) = 1/35."""
    reference = {
        "agg_value": 0.5,
        "value_by_index": {str(row): {"score": value} for row, value in enumerate([5.0, 6.0, 7.0, 8.0])},
    }
    retain = logs(tmp_path / "TOFU_EVAL.json", forget_truth_ratio=reference)
    found = replace(
        forget_quality(_score([1.0, 2.0, 3.0, 4.0], "forget_truth_ratio"), retain), name="forget_quality"
    )
    assert found.value == pytest.approx(1 / 35)
    assert found.facts["D"] == 1.0
    bootstrapped = found.bootstrapped(100, 0)
    assert bootstrapped is not None
    assert (bootstrapped.of, bootstrapped.low, bootstrapped.high) == ("D", 1.0, 1.0)
    same = forget_quality(_score([5.0, 6.0, 7.0, 8.0], "forget_truth_ratio"), retain)
    assert same.value == 1.0


def test_rouge_recall_divides_by_the_answer_and_f1_is_between(examples: Any) -> None:
    """Two of the answer's four words, six written: recall 2/4, precision 2/6, F1 2 x 2 / (4 + 6)."""
    table = GenerationTable(examples([1], texts=["red cat sleeps now"]), ("",), ("the red cat of an aunt",))
    (row,) = rouge(table).by_index().values()
    assert row["rouge1_recall"] == row["rougeL_recall"] == pytest.approx(2 / 4)
    assert row["rougeL_f1"] == pytest.approx(4 / 10)
    for variant, expected in (("rouge1_recall", 0.5), ("rougeL_recall", 0.5), ("rougeL_f1", 0.4)):
        assert rouge(table, variant=variant).value == pytest.approx(expected)


@pytest.mark.parametrize(("rows", "p_value"), [(400, 1.06e-239), (200, 1.94e-119)])
def test_forget_quality_of_a_total_separation(rows: int, p_value: float, tmp_path: Any) -> None:
    reference = {"agg_value": 0.5, "value_by_index": {str(row): {"score": row} for row in range(rows)}}
    retain = logs(tmp_path / "TOFU_EVAL.json", forget_truth_ratio=reference)
    found = forget_quality(_score([-1.0 - row for row in range(rows)], "forget_truth_ratio"), retain)
    assert found.value == pytest.approx(p_value, rel=5e-3)


def test_without_retain_logs_there_is_a_reason_and_no_number(tokens: Tokens) -> None:
    attack = mia_min_k(tokens([[-1.0, 0.0]]), tokens([[-2.0, 0.0]]))
    score = _score([1.0], "x")
    for result in (
        forget_quality(score, None),
        privleak(attack, None),
        rel_diff(score, None),
        mia_reference(attack, None),
    ):
        assert result.as_json() == {"agg_value": None, "reason": "no retain_logs_path"}


def test_privleak(tmp_path: Any, tokens: Tokens) -> None:
    """AUC 1 here, .75 at the retain model: 100 (0 - .25) / .25 = -100. Against chance: 100 (0 - .5) / .5."""
    attack = replace(mia_min_k(tokens([[-1.0, 0.0]]), tokens([[-2.0, 0.0]])), name="mia_min_k")
    side = {"value_by_index": {"0": {"score": 1.0}}}
    known = logs(tmp_path / "a.json", mia_min_k={"agg_value": 0.75, "forget": side, "holdout": side})
    assert privleak(attack, known).value == pytest.approx(-100.0)
    assert privleak(attack, known).facts == {"reference": 0.75, "reference_is_chance": False}
    certain = logs(tmp_path / "b.json", mia_min_k={"agg_value": 1.0, "forget": side, "holdout": side})
    assert "divide by" in str(privleak(attack, certain).reason)
    allowed = privleak(attack, None, allow_missing_reference=True)
    assert allowed.value == pytest.approx(-100.0)
    assert allowed.as_json()["reference_is_chance"] is True
    reversed_attack = replace(mia_min_k(tokens([[-2.0, 0.0]]), tokens([[-1.0, 0.0]])), name="mia_min_k")
    assert privleak(reversed_attack, known).value == pytest.approx(
        300.0
    )  # 100 (1 - .25) / .25: over-unlearned


def test_rel_diff(tmp_path: Any) -> None:
    retain = logs(tmp_path / "a.json", x={"agg_value": 0.2}, y={"agg_value": 0.0})
    assert rel_diff(_score([0.3, 0.5], "x"), retain).value == pytest.approx(100.0)
    assert "is 0" in str(rel_diff(_score([0.3], "y"), retain).reason)
    assert "no value of z" in str(rel_diff(_score([0.3], "z"), retain).reason)


def test_attack_against_the_retain_models_loss(tmp_path: Any, tokens: Tokens) -> None:
    """Forget: 1 - 5 = -4; holdout: 2 - 2 = 0. The forget row is below: AUC 1; the reversed case gives 0."""
    loss = replace(mia_loss(tokens([[-3.0]]), tokens([[-2.0]])), name="mia_loss")
    sides = {
        side: {"value_by_index": {"0": {"score": value}}}
        for side, value in (("forget", 7.0), ("holdout", 2.0))
    }
    found = mia_reference(loss, logs(tmp_path / "a.json", mia_loss={"agg_value": 0.1, **sides}))
    assert loss.value == 0.0
    assert found.value == 1.0
    assert found.parts["forget"].columns["score"] == pytest.approx([-4.0])


def test_model_utility_is_the_harmonic_mean_of_its_parts() -> None:
    """3 / (1/.5 + 1/.25 + 1) = 3/7; 0 if one part is 0."""
    parts = (_score([0.4, 0.6], "a"), _score([0.25], "b"), _score([1.0], "c"))
    assert model_utility(parts).value == pytest.approx(3 / 7)
    assert model_utility(parts).facts["parts"] == {"a": 0.5, "b": 0.25, "c": 1.0}
    assert model_utility((*parts, _score([0.0], "d"))).value == 0.0


def test_perplexity_weighs_tokens_not_pieces(tokens: Tokens) -> None:
    """Pieces of 3 and 1 tokens with nll 1 and 3: exp((3 + 3) / 4)."""
    assert perplexity(tokens([[-1.0] * 3, [-3.0]], ends=False)).value == pytest.approx(math.exp(1.5))


def test_gibberish_is_null_without_a_classifier(examples: Any) -> None:
    table = GenerationTable(examples([1]), ("q",), ("x",))
    assert gibberish(table).reason == "no classifier path"
