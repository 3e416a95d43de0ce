from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.config.validate import load_config
from expunge.core.errors import UserError
from expunge.soul.main import script
from expunge.soul.translate import SoulCommand, translate

RUN = (
    "--overall.model_name expunge/mini --unlearn.task_name tofu --dataset.forget_dataset_name Tofu_forget10 "
    "--dataset.retain_dataset_name Tofu_retain90 --dataset.forget_ratio 5 --dataset.batch_size 1 "
    "--unlearn.num_epochs 1 "
    "--logger.name {name} model.model_args.torch_dtype=float32"
)
ONLY, SAMPLING = ["--unlearn.compute_difficulty_only", "1"], ["--unlearn.enable_difficulty_sampling", "1"]


def line(*more: str, name: str = "A", method: str = "GA") -> list[str]:
    return [*RUN.format(name=name).split(), "--unlearn.unlearn_method", method, *more]


def loaded(argv: list[str]) -> None:
    found = translate(argv)
    try:
        load_config(found.config_name, found.overrides)
    except UserError as error:
        raise found.in_flags(error) from error


def faults(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        loaded(argv)
    return "\n".join(str(fault) for fault in caught.value.faults)


def section(found: SoulCommand) -> dict[str, Any]:
    return load_config(found.config_name, found.overrides).section("difficulty")


def test_the_flags_are_ours(data_root: Path) -> None:
    scores = Path("scores.json")
    scores.write_text("{}")
    found = translate(
        line(*SAMPLING, "--unlearn.difficulty_score_path", str(scores), "--unlearn.difficulty_order", "desc")
    )
    assert (found.verb, section(found)) == ("unlearn", {"path": "scores.json", "order": "score_desc"})
    assert any(
        "a high score is forgotten first, so the rows that are forgotten fast come first" in notice
        for notice in found.notices
    )
    ascending = translate(line(*SAMPLING, "--unlearn.difficulty_score_path", str(scores)))
    assert section(ascending)["order"] == "score_asc", "SOUL's default"
    only = translate(line(*ONLY, "--unlearn.difficulty_score_path", "made/scores.json"))
    assert (only.verb, section(only)) == ("score", {"path": "made/scores.json"})
    assert not translate(line()).overrides[-1].startswith("difficulty")


@pytest.mark.parametrize("method", ["origin", "FT", "CL+KL"])
def test_scoring_needs_no_method_and_no_suite(method: str, data_root: Path) -> None:
    """It needs no gamma of a composite, no refusals, and no evaluation."""
    argv = [
        word if word != "tofu" else "toxic" for word in line(*ONLY, "--unlearn.gamma", "1", method=method)
    ]
    found = translate(argv)
    assert found.verb == "score"
    cfg = load_config(found.config_name, found.overrides)
    assert not cfg.get("eval")
    assert cfg.get("data.forget.TOFU_QA_forget.args.select") == {"ratio": 5, "seed": 0}
    typed = [word for word in argv if word not in ("--unlearn.unlearn_method", method)]
    assert translate(typed).overrides == found.overrides, "the same without a method"


def test_an_override_behind_the_flags_wins(data_root: Path) -> None:
    Path("scores.json").write_text("{}")
    flags = [*SAMPLING, "--unlearn.difficulty_score_path", "scores.json"]
    assert section(translate(line(*flags, "difficulty.order=score_desc")))["order"] == "score_desc"


@pytest.mark.parametrize(
    ("more", "method", "said"),
    [
        (
            [*SAMPLING, "--unlearn.difficulty_score_path", "none.json"],
            "GA",
            "to write it, use the same command line with --unlearn.compute_difficulty_only 1",
        ),
        (SAMPLING, "GA", "the run folder holds no file of scores"),
        (
            SAMPLING,
            "GA",
            "to write it, use the same command line with --unlearn.compute_difficulty_only 1",
        ),
        (SAMPLING, "FT", "FT does not read the forget rows"),
        ([*SAMPLING, "--unlearn.difficulty_order", "easy"], "GA", "unknown difficulty_order 'easy'"),
        (
            [*ONLY, "--unlearn.resume_path", "there"],
            "GA",
            "give the model that computes the scores as --overall.model_name",
        ),
        ([*ONLY, "difficulty.algorithm=jpv"], "GA", "did you mean 'jvp'?"),
    ],
)
def test_what_is_refused(more: list[str], method: str, said: str, data_root: Path) -> None:
    assert said in faults(line(*more, method=method))


def test_flags_without_an_effect_are_reported(data_root: Path) -> None:
    for argv, said in (
        (line("--unlearn.difficulty_order", "desc"), "difficulty sampling is off"),
        (line(*SAMPLING, "--unlearn.difficulty_order", "desc", method="origin"), "nothing is trained"),
        (line(*ONLY, *SAMPLING), "is ignored: the forget rows are scored"),
        (line(*ONLY, "--unlearn.difficulty_order", "desc"), "--unlearn.difficulty_order: ignored"),
    ):
        assert any(said in notice for notice in translate(argv).notices), said


def test_scoring_and_ordered_training_share_one_folder(data_root: Path) -> None:
    """SOUL's two command lines with one run name: the second finds the scores of the first, and trains."""
    folder = data_root.parent / "files" / "logs" / "A"
    assert script("unlearn_model", line(*ONLY)) == 0
    scores = json.loads((folder / "difficulty_scores.json").read_text())
    assert (
        scores["dataset"]["n_total"],
        scores["dataset"]["n_scored"],
        scores["dataset"]["forget_ratio"],
    ) == (6, 5, 5)
    by_uid = {item["uid"]: item["score"] for item in scores["items"]}
    assert script("unlearn_model", line(*SAMPLING, "--unlearn.difficulty_order", "desc", "eval=null")) == 0
    order = json.loads((folder / "pairs" / "forget_order.json").read_text())
    assert order["order"] == "score_desc"
    assert order["epochs"] == [sorted(by_uid, key=lambda uid: (-by_uid[uid], uid))]
    assert (folder / "difficulty_scores.json").is_file()
    assert script("unlearn_model", line(*ONLY)) == 2, "the scores already exist"
