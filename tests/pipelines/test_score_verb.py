"""`expunge score`, and runs that order their forget rows by its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mini_runs import Outcome, model_is, read
from safetensors.torch import load_file

from expunge.cli.main import main
from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.run_dir import SCORES_FILE, RunDir

MINI = ("experiment=unlearn/mini/default", "eval=null", "trainer=NPO")
PARAMS = r"difficulty.params='model\.layers\.0\.mlp\..*'"


@pytest.fixture(scope="session")
def scored(start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the benchmark's forget rows under the start model."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    assert (
        main(
            [
                "score",
                *MINI,
                model_is(start_model),
                "task_name=s",
                f"difficulty.path={path}",
                "difficulty.max_tokens=600",
            ]
        )
        == 0
    )
    return path


def test_the_file_says_what_it_is_of(scored: Path, start_model: Path) -> None:
    content = read(scored)
    assert content["model"]["name"] == str(start_model)
    assert content["dataset"]["name"] == "MINI_forget"
    assert content["dataset"]["n_scored"] == len(content["items"]) == 40
    assert content["scorer"]["params"] == "all"
    projections = [item["projection"] for item in content["items"]]
    assert sum(projections) / 40 == pytest.approx(content["epoch_grad"]["norm"], rel=1e-5)
    g = load_file(scored.with_name(content["epoch_grad"]["path"]))
    assert sum(value.numel() for value in g.values()) == content["epoch_grad"]["n_params"]
    assert torch.stack([value.double().square().sum() for value in g.values()]).sum().sqrt() == pytest.approx(
        content["epoch_grad"]["norm"]
    )


def test_the_command_line_of_a_run_also_makes_its_scores(
    expunge: Callable[..., Outcome], start_model: Path
) -> None:
    """`score` writes to the run folder, with any order; the run finds the scores there and uses them."""
    line = (*MINI, model_is(start_model), "difficulty.order=score_asc", "difficulty.algorithm=naive", PARAMS)
    refused = expunge("unlearn", *line)
    assert refused.code == 2
    assert "the run folder holds no file of scores" in refused.stderr
    assert "expunge score" in refused.stderr
    made = expunge("score", *line)
    assert made.code == 0
    assert read(made.out / SCORES_FILE)["items"][0]["grad_norm"] > 0
    again = expunge("score", *line)
    assert again.code == 2
    assert "exists already" in again.stderr
    ran = expunge("unlearn", *line, "trainer.args.max_steps=1", "trainer.args.report_to=none")
    assert ran.code == 0
    by_uid = {item["uid"]: item["score"] for item in read(ran.out / SCORES_FILE)["items"]}
    order = read(ran.out / "pairs" / "forget_order.json")
    assert order["epochs"][0] == sorted(by_uid, key=lambda uid: (by_uid[uid], uid))


def test_the_first_k_are_unlearned_and_no_others(unlearn: Callable[..., Outcome], scored: Path) -> None:
    by_uid = {item["uid"]: item["score"] for item in read(scored)["items"]}
    settings = (
        "difficulty.select=first_k",
        "difficulty.k=3",
        "difficulty.select_by=score_desc",
        "trainer.args.max_steps=1",
    )
    ran = unlearn(f"difficulty.path={scored}", *settings, model_is(Path("expunge/mini")))
    assert ran.code == 0
    assert "was made with another model" in ran.stderr
    order = read(ran.out / "pairs" / "forget_order.json")
    assert set(order["kept"]) == set(sorted(by_uid, key=lambda uid: (-by_uid[uid], uid))[:3])
    assert order["epochs"] is None, "selected, and as drawn"
    assert sorted(read(ran.out / "pairs" / "order.json")["epochs"][0]) == [0, 1, 2]


def test_scores_of_other_rows_are_refused_before_a_model_is_loaded(
    unlearn: Callable[..., Outcome], scored: Path, tmp_path: Path
) -> None:
    content = read(scored)
    content["items"][0]["uid"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    refused = unlearn(
        f"difficulty.path={other}", "difficulty.order=score_asc", "model.model_args.torch_dtype=auto"
    )
    assert refused.code == 2
    assert "belongs to another forget set" in refused.stderr
    assert not refused.out.exists()
    tokens = unlearn(
        f"difficulty.path={scored}", "difficulty.order=score_asc", "model.template_args.system_prompt=Hello"
    )
    assert tokens.code == 2
    assert "the same rows but with other tokens" in tokens.stderr


def test_without_an_order_a_run_is_the_one_it_was(scored: Path) -> None:
    from expunge.pipelines.forget_order import by_score, in_order

    plain = load_config("unlearn", [*MINI, "task_name=x"])
    off = load_config(
        "unlearn",
        [
            *MINI,
            "task_name=x",
            "difficulty.order=none",
            f"difficulty.path={scored}",
            "difficulty.algorithm=naive",
        ],
    )
    on = load_config(
        "unlearn", [*MINI, "task_name=x", "difficulty.order=score_asc", f"difficulty.path={scored}"]
    )
    assert plain.identity() == off.identity() != on.identity()
    assert "difficulty" not in plain.identity_tree()
    sides: dict[str, Any] = {"forget": object(), "retain": object()}
    assert by_score(off, sides, SimpleNamespace(sides=("forget",)), []) == (sides, None)  # type: ignore[arg-type]
    pairs: Any = object()
    assert in_order(None, pairs, SimpleNamespace(path=Path("none")), 0, 1) is pairs  # type: ignore[arg-type]


def test_a_run_does_not_resume_with_other_scores(tmp_path: Path) -> None:
    from expunge.pipelines.forget_order import ByScore, in_order
    from expunge.training.score_order import FORGET_ORDER_FILE, ScoreOrder

    (tmp_path / "pairs").mkdir()
    (tmp_path / FORGET_ORDER_FILE).write_text('{"sha256": "a"}')
    run: Any = SimpleNamespace(path=tmp_path, primary=True)
    pairs: Any = object()

    def chosen(sha256: str) -> ByScore:
        return ByScore(SimpleNamespace(sha256=sha256, path="scores.json"), ScoreOrder((0,), None), {}, ("a",))  # type: ignore[arg-type]

    assert in_order(chosen("a"), pairs, run, 0, 1) is pairs
    with pytest.raises(UserError, match=r"began with other scores than those in scores\.json"):
        in_order(chosen("b"), pairs, run, 0, 1)


def test_scores_in_a_run_folder_are_not_a_run_and_are_never_removed(tmp_path: Path) -> None:
    """Scores are made before the run, in its folder; neither its failure nor its replacement removes them."""
    names = {SCORES_FILE, "difficulty_scores.gradient.safetensors"}
    for name in names:
        (tmp_path / name).write_text("{}")
    config = Config({"mode": "unlearn", "task_name": "x"})
    run = RunDir(tmp_path, config)
    assert not run.resumed
    run.begin()
    run.abandon(keep=False)
    assert {path.name for path in tmp_path.iterdir()} == names
    RunDir(tmp_path, config).begin()
    (tmp_path / "model.safetensors").write_text("")
    RunDir(tmp_path, config, overwrite=True).begin()
    assert {path.name for path in tmp_path.iterdir()} == {*names, "run.json", "run_config.json"}


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config("unlearn", [*MINI, "task_name=x", *overrides])
    return "\n".join(str(fault) for fault in error.value.faults)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            (
                "difficulty.ordr=score_asc", "difficulty.order=score_dsc", "difficulty.algorithm=jpv",
                "difficulty.loss=npo",
                "difficulty.k=4", "difficulty.epoch_grad_mode=trajectory", "difficulty.max_tokens=0",
                "difficulty.signed=perhaps",
                "difficulty.params='('", "difficulty.path=scores.pt",
            ),
            (
                "takes no 'ordr'\n  -> did you mean 'order'?", "did you mean 'score_desc'?",
                "did you mean 'jvp'?",
                "ranks as nll with reduction=token_sum", "nothing is selected", "not part of this version",
                "must be a whole number of at least 1", "must be true or false", "not a regular expression",
                "scores are a .json or a .jsonl file",
            ),
        ),
        (
            ("difficulty.reduction=mean", "difficulty.epoch_grad_mode=frosen", "difficulty.select=last_k",
            "difficulty.k=1", "difficulty.order=asc"),
            ("must be one of 'token_mean', 'token_sum'", "did you mean 'frozen'?", "difficulty.select=last_k",
            "did you mean 'score_asc'?"),
        ),
        (("difficulty=score_asc",), ("this is a section, not a value",)),
        (
            ("difficulty.order=easy",),
            ("easy: must be one of 'none', 'score_asc', 'score_desc'\n  -> a high score forgets first",),
        ),
        (("difficulty.select=first_k",), ("difficulty.k is not given", "first_k needs an order")),
        (
            ("difficulty.order=score_asc", "difficulty.path=none.json", "trainer=FT",
            "trainer.args.dataloader_drop_last=true"),
            (
                "difficulty.path=none.json: no such file of scores",
                "finetune does not read the forget rows, so their order changes nothing",
                "the last rows of the order would never be trained on",
            ),
        ),
        (("difficulty.order=score_asc", "trainer=l1_sparse"), ("l1_sparse does not read the forget rows",)),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_loaded(
    overrides: tuple[str, ...], said: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(*overrides)
    assert [text for text in said if text not in message] == []


def test_scoring_is_done_in_one_process(
    expunge: Callable[..., Outcome], start_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = expunge("score", *MINI, model_is(start_model))
    assert refused.code == 2
    assert "started in 2 processes" in refused.stderr
