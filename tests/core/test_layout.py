from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.layout import EXPUNGE, LAYOUTS, SOUL, layout_of, model_folder_of, result_files
from expunge.core.run_dir import RunDir


def config(**changes: object) -> Config:
    return Config({"mode": "unlearn", "task_name": "t", "trainer": {"handler": "m:f", "args": {}}, **changes})


def begun(path: Path, layout: str | None) -> RunDir:
    run = RunDir(path, config() if layout is None else config(run_layout=layout))
    run.begin()
    return run


@pytest.mark.parametrize(
    ("layout", "config_file", "model", "results"),
    [
        (None, "run_config.json", ".", "evals"),
        ("expunge", "run_config.json", ".", "evals"),
        ("soul", "config.json", "checkpoints", "."),
    ],
)
def test_a_run_is_recognised_by_its_configuration_file(
    layout: str | None, config_file: str, model: str, results: str, tmp_path: Path
) -> None:
    run = begun(tmp_path / "t", layout)
    assert (run.path / config_file).is_file()
    assert layout_of(run.path) is LAYOUTS[layout or "expunge"]
    assert (run.model_folder, model_folder_of(run.path)) == (run.path / model, run.path / model)
    assert (run.results_folder(), run.results_folder(7)) == (
        run.path / results,
        run.path / "evals" / "step-7",
    )
    run.mark_trained()
    assert RunDir(tmp_path / "t", run.config).trained


def test_a_models_config_file_is_not_a_run(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert layout_of(tmp_path) is None
    assert model_folder_of(tmp_path) == tmp_path
    assert model_folder_of(tmp_path / "gone") == tmp_path / "gone"
    with pytest.raises(UserError, match="holds no run of this tool"):
        RunDir(tmp_path, config(run_layout="soul"), overwrite=True)
    (tmp_path / "config.json").write_text("{")
    assert layout_of(tmp_path) is None


def test_another_layout_is_the_same_run_but_needs_its_own_folder(tmp_path: Path) -> None:
    assert config().identity() == config(run_layout="soul").identity()
    begun(tmp_path / "t", "soul")
    with pytest.raises(UserError, match="add run_layout=soul to continue it"):
        RunDir(tmp_path / "t", config())
    replaced = RunDir(tmp_path / "t", config(), overwrite=True)
    replaced.begin()
    assert sorted(path.name for path in replaced.path.iterdir()) == ["run.json", "run_config.json"]
    assert read_json(replaced.path / "run_config.json")["identity"] == config().identity()


def test_results_are_searched_under_every_layout(tmp_path: Path) -> None:
    assert [str(whole.relative_to(tmp_path)) for whole, _ in result_files(tmp_path, "toxicity")] == [
        "TOXICITY_EVAL.json",
        "evals/TOXICITY_EVAL.json",
        "toxic.json",
    ]
    assert EXPUNGE.summary_file(tmp_path, "tofu") == tmp_path / "TOFU_SUMMARY.json"
    assert SOUL.summary_file(tmp_path, "tofu") is None
    files = {"toxicity": "toxic.json"} | {
        suite: f"{suite}.json" for suite in ("ppl", "few_shots", "tofu", "wmdp", "copyright")
    }
    assert {suite: SOUL.eval_file(tmp_path, suite).name for suite in files} == files
