from __future__ import annotations

import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

from expunge.cli import main as cli
from expunge.cli.exit_code import ExitCode
from expunge.cli.verbs.run import PIPELINES
from expunge.core.config import Config
from expunge.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "sklearn")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Pipelines that record the configurations they are called with."""
    noted: list[tuple[str, Config]] = []
    for mode in PIPELINES:
        module = types.ModuleType(f"fake_{mode}")
        module.run = lambda cfg, mode=mode: noted.append((mode, cfg))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(PIPELINES, mode, f"{module.__name__}:run")
    return noted


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


UNLEARN = (
    "--config-name=unlearn.yaml experiment=unlearn/tofu/default forget_split=forget10 retain_split=retain90 "
    "trainer=SimNPO task_name=X model.model_args.attn_implementation=eager trainer.args.learning_rate=5e-5 "
    "trainer.args.num_train_epochs=20 trainer.args.per_device_train_batch_size=2 "
    "trainer.args.gradient_accumulation_steps=8 trainer.args.eval_strategy=steps "
    "+trainer.args.eval_steps=100 trainer.args.save_strategy=steps +trainer.args.save_steps=100 "
    "trainer.args.logging_steps=10"
)
TRAIN = "--config-name=train.yaml experiment=finetune/tofu/default model=Llama-3.2-1B-Instruct task_name=X"
EVAL = (
    "--config-name=eval.yaml experiment=eval/tofu/default forget_split=forget10 holdout_split=holdout10 "
    "model.model_args.pretrained_model_name_or_path={model} "
    "model.tokenizer_args.pretrained_model_name_or_path={model} "
    "retain_logs_path={logs} task_name=X paths.output_dir={out}"
)
SHORT = "--config-name=unlearn.yaml experiment=unlearn/tofu/default.yaml task_name=X "


@pytest.mark.parametrize(
    ("script", "line", "mode"),
    [
        ("train", UNLEARN, "unlearn"),
        ("train", TRAIN, "finetune"),
        ("eval", EVAL, "eval"),
        ("train", SHORT + "trainer=NPO trainer.method_args.gamma=0.5", "unlearn"),
        ("train", SHORT + "+trainer.args.logging_steps=1", "unlearn"),
        ("train", SHORT + "trainer.args.resume_from_checkpoint={model}", "unlearn"),
        ("train", SHORT + "trainer.args.gradient_checkpointing=true", "unlearn"),
        ("train", SHORT + "trainer=GradDiff trainer.method_args.retain_loss_type=KL", "unlearn"),
        (
            "train",
            "--config-name=unlearn.yaml experiment=unlearn/tofu/idk trainer=DPO task_name=X",
            "unlearn",
        ),
        (
            "train",
            TRAIN
            + " data/datasets@data.train=TOFU_QA_retain data.train.TOFU_QA_retain.args.hf_args.name=retain90",
            "finetune",
        ),
    ],
)
def test_the_fields_command_lines(
    script: str,
    line: str,
    mode: str,
    runs: list[tuple[str, Config]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "no-data"))
    (tmp_path / "TOFU_EVAL.json").write_text("{}")
    argv = line.format(model=model, logs=tmp_path / "TOFU_EVAL.json", out=tmp_path / "out").split()
    assert cli.script(f"{script}.py", f"{script}.yaml", argv) == 0
    ((ran, cfg),) = runs
    assert ran == mode
    assert cfg.get("task_name") == "X"
    assert list(cfg.overrides) == argv[1:]


def test_the_long_command_line_sets_every_value(
    runs: list[tuple[str, Config]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    assert cli.script("train.py", "train.yaml", UNLEARN.split()) == 0
    cfg = runs[0][1]
    expected = {
        "trainer.handler": "expunge.methods.simnpo:simnpo",
        "model.model_args.attn_implementation": "eager",
        "forget_split": "forget10",
        "retain_split": "retain90",
        "holdout_split": "holdout10",
        "trainer.args.learning_rate": 5e-5,
        "trainer.args.num_train_epochs": 20,
        "trainer.args.per_device_train_batch_size": 2,
        "trainer.args.gradient_accumulation_steps": 8,
        "trainer.args.eval_strategy": "steps",
        "trainer.args.eval_steps": 100,
        "trainer.args.save_strategy": "steps",
        "trainer.args.save_steps": 100,
        "trainer.args.logging_steps": 10,
        "trainer.args.warmup_epochs": 1.0,
        "trainer.args.weight_decay": 0.01,
        "paths.output_dir": "saves/unlearn/X",
    }
    assert {key: cfg.get(key) for key in expected} == expected


@pytest.mark.parametrize(("verb", "mode"), [("train", "finetune"), ("unlearn", "unlearn"), ("eval", "eval")])
def test_verbs(verb: str, mode: str, runs: list[tuple[str, Config]]) -> None:
    assert cli.main([verb, "task_name=a", "--verbose", "seed=3"]) == 0
    assert [(ran, cfg.get("seed")) for ran, cfg in runs] == [(mode, 3)]


def test_notices_are_logged(runs: list[tuple[str, Config]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cli.main(["unlearn", "task_name=a", "trainer.args.evaluation_strategy=steps"])
    assert any("evaluation_strategy" in record.getMessage() for record in caplog.records)


def test_faults_go_to_stderr_with_code_2(
    runs: list[tuple[str, Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(
            [
                "unlearn",
                "trainer=NPOO",
                "task_name=a",
                "trainer.args.lerning_rate=1",
                "retain_logs_path=no.json",
            ]
        )
        == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "NPOO" in captured.err
    assert "no.json" in captured.err
    assert "Traceback" not in captured.err
    assert runs == []


def test_other_ranks_stay_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(["unlearn", "trainer=NPOO"]) == 2
    assert capsys.readouterr().err == ""


def test_multirun_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["unlearn", "-m", "task_name=a", "seed=1,2"]) == 2
    assert "-m (several runs" in capsys.readouterr().err
    assert cli.script("train.py", "train.yaml", ["--multirun", "task_name=a"]) == 2
    assert "-m (several runs" in capsys.readouterr().err


def test_a_procedure_has_a_pipeline_of_its_own(runs: list[tuple[str, Config]]) -> None:
    line = ["unlearn", "experiment=unlearn/mini/default", "task_name=a", "procedure=task_vector"]
    assert cli.main(line) == 0
    assert [ran for ran, _ in runs] == ["procedure"]


def test_only_the_verb_is_between_main_and_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[str] = []

    def pipeline(cfg: Config) -> None:
        frame = sys._getframe(1)
        while frame is not None and not (frames and frames[-1] == "main"):
            frames.append(frame.f_code.co_name)
            frame = frame.f_back

    module = types.ModuleType("fake_pipeline")
    module.run = pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(PIPELINES, "unlearn", "fake_pipeline:run")
    assert cli.main(["unlearn", "experiment=unlearn/mini/default", "task_name=a"]) == 0
    assert frames == ["run", "main"]


@pytest.mark.parametrize("argv", [["unlearn", "--confg-name=x"], ["forget"], [], ["ls", "methods", "more"]])
def test_unknown_options(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("what is wrong", "what to do"), 2, "what to do"),
        (KeyboardInterrupt(), 130, "the same command continues"),
    ],
)
def test_exit_code(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitCode() as found:
        raise error
    assert found.value == code
    assert words in capsys.readouterr().err


def test_own_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), ExitCode():
        raise ZeroDivisionError


def test_validate_prints_the_run_and_starts_none(
    runs: list[tuple[str, Config]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [
        "validate",
        "unlearn",
        "experiment=unlearn/tofu/default",
        "trainer=NPO",
        "task_name=a",
        f"paths.data_root={tmp_path}",
    ]
    assert cli.main([*argv, "trainer.args.warmup_ratio=0.1"]) == 0
    out = capsys.readouterr().out
    for fragment in (
        "handler: expunge.methods.npo:npo",
        "# steps: unknown until downloaded",
        "# effective batch: 32",
        "# note:",
        "warmup_steps",
    ):
        assert fragment in out, fragment
    assert cli.main(["validate", "eval", "task_name=a"]) == 0
    assert "mode: eval" in capsys.readouterr().out
    assert cli.main(["validate", "score", "task_name=a", "difficulty.order=score_asc"]) == 0
    assert "order: none" in capsys.readouterr().out, "scoring ignores how the run uses the scores"
    assert cli.main(["validate", "alternates", "task_name=a"]) == 0
    assert "mode: unlearn" in capsys.readouterr().out
    assert runs == []


def test_ls_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, word in (
        (["ls"], "experiments"),
        (["ls", "methods"], "SimNPO"),
        (["show", "SimNPO"], "2410.07163"),
    ):
        assert cli.main(argv) == 0
        assert word in capsys.readouterr().out
    assert cli.main(["show", "SimNP"]) == 2


FORBIDDING = """
import builtins, sys
real = builtins.__import__
def guarded(name, *rest, **more):
    assert name.split('.')[0] not in {heavy!r}, f'{{name}} is imported'
    return real(name, *rest, **more)
builtins.__import__ = guarded
from expunge.cli.main import main
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["unlearn", "--help"], 0),
        (["ls", "methods"], 0),
        (["ls", "metrics"], 0),
        (["show", "NPO"], 0),
        (["validate", "unlearn", "task_name=a"], 0),
        (["unlearn", "trainer=NPO"], 2),
    ],
    ids=str,
)
def test_nothing_heavy_is_imported(argv: list[str], code: int) -> None:
    """Each command works in a process where the import of a heavy package fails."""
    program = FORBIDDING.format(heavy=HEAVY, argv=argv)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert bool(result.stdout) == (code == 0)


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_scripts_start(script: str) -> None:
    result = subprocess.run(
        [sys.executable, f"src/{script}", "task_name=a", "model=nothing"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 2
    assert "model=nothing: unknown model" in result.stderr


@pytest.mark.parametrize(("rank", "messages"), [("0", 1), ("1", 0)])
def test_ctrl_c_is_reported_by_one_process_of_a_launch(
    rank: str, messages: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with ExitCode() as code:
        raise KeyboardInterrupt
    assert code.value == 130
    assert capsys.readouterr().err.count("interrupted; the same command continues") == messages
