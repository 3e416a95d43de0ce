"""The run directory of a SOUL command line: its files, resuming, evaluating again, reading by the reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.main import main
from expunge.core.errors import UserError
from expunge.core.layout import layout_of
from expunge.evaluation.retain_logs import RetainLogs
from expunge.report.results import read_evaluated
from expunge.soul.main import script
from expunge.training.loop import Training
from expunge.training.step import Stepper
from recorded import WALL_CLOCK, read_records

COMMON = (
    "--overall.model_name expunge/mini --unlearn.task_name tofu --dataset.forget_dataset_name Tofu_forget10 "
    "--dataset.retain_dataset_name "
    "Tofu_retain90 --dataset.forget_ratio 4 --dataset.batch_size 2 model.model_args.torch_dtype=float32"
)
FEW = ["eval.tofu.generation.max_new_tokens=2", "eval.tofu.bootstrap={resamples:10,seed:0}"]
TRAINS = [*COMMON.split(), "--unlearn.unlearn_method", "GA+FT", "--unlearn.GA+FT.gamma", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_tofu: Callable[[Path], Path]) -> Iterator[Path]:
    """The folder of a run that was trained for two epochs and evaluated."""
    home = tmp_path_factory.mktemp("soul")
    write_tofu(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_DATA", str(home / "data"))
        patch.chdir(home)
        assert (
            script("unlearn_model", [*TRAINS, "--unlearn.num_epochs", "2", "--logger.name", "N", *FEW]) == 0
        )
        yield home / "files" / "logs" / "N"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def summary(folder: Path) -> dict[str, float | None]:
    return {name: found.value for name, found in read_evaluated("N", folder).metrics.items()}


def test_every_file_has_souls_name(trained: Path) -> None:
    assert names(trained) == {
        "config.json",
        "log.json",
        "checkpoints",
        "tofu.json",
        "run.json",
        "trained.json",
        "pairs",
        "tables",
    }
    assert read(trained / "config.json")["config"]["trainer"]["method_args"]["alpha"] == 1
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names(trained / "checkpoints") >= {*model, "checkpoint-4"}
    assert read(trained / "checkpoints" / "config.json")["model_type"]
    steps = [record for record in read(trained / "log.json") if "loss" in record]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    keys = {"loss", "grad_diff", "retain_nll", "learning_rate", "grad_norm", "seconds", "peak_memory_mb"}
    assert all(keys <= set(step) for step in steps)
    assert read(trained / "run.json")["status"] == "complete"


def test_one_file_has_all_of_an_evaluation(trained: Path) -> None:
    found = read(trained / "tofu.json")
    assert {name: found[name]["agg_value"] for name in found["_about"]["summary"]} == read(
        trained / "run.json"
    )["metrics"]
    assert found["forget_Q_A_Prob"]["value_by_index"]["0"]["prob"] > 0


def test_reports_read_it_like_any_other(trained: Path) -> None:
    assert summary(trained) == read(trained / "run.json")["metrics"]
    assert read_evaluated("N", trained).steps == 4
    assert RetainLogs.read(trained, "tofu").path == trained / "tofu.json"
    with pytest.raises(UserError, match=r"looked for .*TOFU_SUMMARY\.json.*tofu\.json"):
        read_evaluated("N", trained / "pairs")


def test_souls_own_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tofu.json").write_text(json.dumps({"forget": {"rouge": 0.1}}))
    with pytest.raises(UserError, match="not an evaluation file of this tool"):
        read_evaluated("S", tmp_path)


@pytest.mark.parametrize(
    ("path", "name", "typed"),
    [
        ("files/logs/N", "N_eval", []),
        ("files/logs/N/checkpoints", "N_eval", ["--logger.name", "N"]),
        ("files/logs/N/checkpoints/checkpoint-4", "other", ["--logger.name", "other"]),
    ],
)
def test_a_resume_path_trains_nothing_and_evaluates(
    path: str, name: str, typed: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "run", None)
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    assert script("unlearn_model", [*TRAINS, "--unlearn.resume_path", path, *typed, *FEW]) == 0
    folder = trained.parent / name
    assert names(folder) == {"config.json", "run.json", "tofu.json", "tables"}
    assert summary(folder) == pytest.approx(summary(trained), nan_ok=True)
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before


def test_the_folder_of_a_run_is_a_model_for_our_own_commands(trained: Path) -> None:
    where = [
        f"model.model_args.pretrained_model_name_or_path={trained}",
        "model=soul",
        "forget_split=forget10",
    ]
    assert (
        main(
            [
                "eval",
                "task_name=own",
                "paths.output_dir=own",
                *where,
                "model.model_args.torch_dtype=float32",
                *FEW,
            ]
        )
        == 0
    )
    own = trained.parents[2] / "own"
    assert names(own) == {"run_config.json", "run.json", "TOFU_EVAL.json", "TOFU_SUMMARY.json", "tables"}
    # The suite of SOUL's command line has one more metric.
    assert summary(own) == {name: value for name, value in summary(trained).items() if name in summary(own)}
    assert 0 < summary(own)["forget_Q_A_Prob"] < 1
    notices = read(own / "run.json")["notices"]
    assert f"{trained} is the folder of a run; its model is in {trained / 'checkpoints'}" in notices


def test_a_killed_run_continues_where_it_stopped(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *TRAINS,
        "--unlearn.num_epochs",
        "2",
        "eval=null",
        "trainer.args.save_total_limit=null",
        "--logger.name",
    ]
    assert script("unlearn_model", [*command, "whole"]) == 0
    original, begun = Stepper.step, []

    def step(self: Stepper, *args: Any) -> Any:
        begun.append(1)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        assert script("unlearn_model", [*command, "killed"]) == 130
    whole, killed = (data_root.parent / "files" / "logs" / name for name in ("whole", "killed"))
    assert len(read(killed / "log.json")) == 3
    assert script("unlearn_model", [*command, "killed"]) == 0
    assert "resuming from files/logs/killed/checkpoints/checkpoint-2" in capsys.readouterr().err
    weights = "checkpoints/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    lasting = [
        [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in read_records(run)]
        for run in (whole, killed)
    ]
    assert lasting[0] == lasting[1]
    assert layout_of(killed) is layout_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_is_saved_alone_or_merged_on_request(merged: bool, data_root: Path) -> None:
    command = [*TRAINS, "--unlearn.max_steps", "1", "--use_lora", "--logger.name", "L", "eval=null"]
    assert script("unlearn_model", [*command, f"model.adapter.merge={str(merged).lower()}"]) == 0
    folder = data_root.parent / "files" / "logs" / "L" / "checkpoints"
    adapter = folder / "adapter" if merged else folder
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names(adapter)
    assert ("model.safetensors" in names(folder)) == merged
    assert "tokenizer.json" in names(folder)
