"""`expunge validate eval`: every fault of a suite is reported with its key, exit code 2; nothing loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from expunge.cli import main as cli
from expunge.config.validate import load_config

RUN = ("eval", "eval=[tofu_full,toxicity,copyright]", "task_name=x")
M, V = "eval.tofu.metrics", "eval.tofu.views"
CASES: list[tuple[str, Sequence[str]]] = [
    # Options of metrics.
    (f"{M}.mia_min_k.k=abc", (f"{M}.mia_min_k.k=abc: must be a number", "the default is 0.4")),
    (f"{M}.mia_min_k.k=2", (f"{M}.mia_min_k.k=2: must be a number above 0 and at most 1",)),
    (f"{M}.mia_min_k.kk=0.3", (f"{M}.mia_min_k.kk=0.3: mia_min_k takes no 'kk'", "did you mean 'k'?")),
    (f"{M}.mia_gradnorm.norm=max", (f"{M}.mia_gradnorm.norm=max: must be one of 'global', 'mean_of",)),
    (
        f"{M}.forget_Q_A_ROUGE.variant=rougeL_recal",
        ("=rougeL_recal: must be", "did you mean 'rougeL_recall'?"),
    ),
    (f"{M}.forget_truth_ratio.aggregate=closer_to_one", ("did you mean 'closer_to_1'?",)),
    (f"{M}.forget_truth_ratio.wrong_mean=harmonic", ("one of 'geometric', 'arithmetic'",)),
    (
        f"{M}.forget_truth_ratio.eps=-1e-3",
        (f"{M}.forget_truth_ratio.eps=-1e-3: must be a number of at least 0",),
    ),
    (f"{M}.gibberish.classifier_path=here", (f"{M}.gibberish.classifier_path=here: must be null",)),
    (f"{M}.mia_loss.summary=maybe", (f"{M}.mia_loss.summary=maybe: must be true or false",)),
    ("compat.switches.privleak.eps=-1", ("compat.switches.privleak.eps=-1: must be a number of at least 0",)),
    # What a metric reads.
    (
        f"{M}.mia_loss.forget=forgets",
        (f"{M}.mia_loss.forget=forgets: unknown view", "did you mean 'forget'?"),
    ),
    (f"{M}.mia_loss.forget=[forget]", (f"{M}.mia_loss.forget=[forget]: must be a string",)),
    (f"{M}.forget_truth_ratio.correct=forget_Q_A_PARA", ("unknown metric 'forget_Q_A_PARA'", "did you mean")),
    (f"{M}.model_utility.parts=[retain_Q_A_Prb]", ("did you mean 'retain_Q_A_Prob'?",)),
    (
        f"{M}.model_utility.parts=retain_Q_A_Prob",
        (f"{M}.model_utility.parts=retain_Q_A_Prob: must be a list",),
    ),
    (f"~{M}.exact_memorization.answers", (f"{M}.exact_memorization.answers is not given",)),
    (
        f"{M}.ra_Q_A_Prob_normalised.correct=ra_Q_A_Prob_normalised",
        (f"{M}: these metrics read each other in a circle: ra_Q_A_Prob_normalised",),
    ),
    (f"{M}.forgot_quality={{}}", (f"{M}.forgot_quality: unknown metric", "did you mean 'forget_quality'?")),
    (f"{M}.mia_loss.handler=expunge.evaluation.metrics.mia_loss:mia_los", ("did you mean 'mia_loss'?",)),
    # Settings of a collector, keys of a suite, scorers.
    (
        "eval.tofu.generation.max_newtokens=3",
        ("generation.max_newtokens=3", "did you mean 'max_new_tokens'?"),
    ),
    ("eval.tofu.generation.do_sample=true", ("eval.tofu.generation.do_sample=true: must be False",)),
    ("eval.tofu.generation.max_new_tokens=0", ("max_new_tokens=0: must be a whole number of at least 1",)),
    (
        f"{M}.forget_Q_A_ROUGE.generation={{max_new_tokens: x}}",
        ("generation.max_new_tokens=x: must be a whole",),
    ),
    ("eval.tofu.bootstrap.resamples=abc", ("eval.tofu.bootstrap.resamples=abc: must be a whole number",)),
    ("eval.tofu.field_rounding=maybe", ("eval.tofu.field_rounding=maybe: must be true or false",)),
    ("eval.tofu.metrics=3", ("eval.tofu.metrics=3: must be a section of keys and values or null",)),
    ("eval.tofu.views=3", ("eval.tofu.views=3: must be a section of keys and values or null",)),
    ("eval.tofu.collectors=[my_package:Hidden]", ("there is no module 'my_package'",)),
    (
        "eval.toxicity.scorer=profanty",
        ("eval.toxicity.scorer=profanty: unknown", "did you mean 'profanity'?"),
    ),
    ("eval.toxicity.scorer=./no", ("eval.toxicity.scorer=./no: no such folder",)),
    ("eval.toxicity.scorer=nowhere:f", ("eval.toxicity.scorer=nowhere:f: nowhere:f: there is no module",)),
    # Views.
    (
        f"{V}.holdout.kind=choice",
        (f"{V}.holdout.kind=choice: unknown kind of view", "did you mean 'choices'?"),
    ),
    (f"{V}.holdout.answerkey=x", (f"{V}.holdout.answerkey=x", "did you mean 'answer_key'?")),
    (f"{V}.holdout.max_length=long", (f"{V}.holdout.max_length=long: must be a whole number",)),
    ("eval.copyright.views.passage.prompt=null", ("eval.copyright.views.passage.prompt is not given",)),
]


@pytest.mark.parametrize(
    ("override", "said"), CASES, ids=lambda part: part[:80] if isinstance(part, str) else ""
)
def test_a_fault_of_a_suite_is_reported_once_and_nothing_is_loaded(
    override: str, said: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(sys.modules)
    assert cli.main(["validate", *RUN, override]) == 2
    text = capsys.readouterr().err
    for words in said:
        assert words in text
    assert text.count("->") <= 1, text
    loaded = {name for name in set(sys.modules) - before if name.startswith(("torch", "expunge.evaluation"))}
    assert not loaded


def test_what_is_bound_is_what_an_evaluation_gets() -> None:
    cfg = load_config("eval", [*RUN[1:], f"{M}.mia_min_k.k=0.5", f"{M}.mia_zlib.enabled=false"])
    metric = cfg.bound[f"{M}.mia_min_k"]
    assert metric.handler == "expunge.evaluation.metrics.mia_min_k:mia_min_k"
    assert metric.kwargs == {"forget": "forget", "holdout": "holdout", "k": 0.5}
    assert metric.options == {"summary": True, "enabled": True, "generation": None}
    assert cfg.bound[f"{V}.holdout"].options["kind"] == "answers"
    assert cfg.bound["eval.copyright.views.prompt_50"].kwargs["prompt"] == 50
    assert cfg.bound["eval.toxicity.scorer"].handler == "expunge.evaluation.scorers:profanity"
    assert f"{M}.mia_zlib" not in cfg.bound


def test_every_fault_of_every_suite_is_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"{M}.mia_min_k.k=abc", f"{V}.holdout.answerkey=x", "eval.toxicity.generation.stop=3"]
    assert cli.main(["validate", *RUN, *given, f"{M}.mia_loss.forget=forgets"]) == 2
    assert capsys.readouterr().err.count("\n  ->") >= 3


def test_a_retain_log_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "TOFU_EVAL.json"
    assert cli.main(["validate", *RUN, f"retain_logs_path={path}"]) == 2
    assert f"retain_logs_path={path}: no such file" in capsys.readouterr().err
    path.write_text(json.dumps({}))
    assert cli.main(["validate", *RUN, f"retain_logs_path={path}"]) == 0
