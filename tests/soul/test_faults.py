from __future__ import annotations

from pathlib import Path

import pytest
from soul_lines import faults, short

from expunge.soul.main import script
from expunge.soul.unlearning import SUITES


def test_a_task_without_its_suite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "copyright", ("ppl", "mia_svc"))
    argv = short(task_name="hp", forget_dataset_name="SafePku")
    assert "--unlearn.task_name hp: this version has no evaluation mia_svc" in faults(argv)[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--unlearn.unlern_method", "GA"],
            "unknown flag --unlearn.unlern_method\n  -> did you mean --unlearn.unlearn_method?",
        ),
        (short("GA-FT"), "unknown method 'GA-FT'\n  -> did you mean 'GA+FT'?"),
        (
            short(forget_dataset_name="Tofu-forget10"),
            "unknown dataset 'Tofu-forget10'\n  -> did you mean 'Tofu_forget10'?",
        ),
        (short("origin", forget_dataset_name="WMDPBios"), "did you mean 'WMDPBio'?"),
        (short(logger="jsn"), "did you mean 'json'?"),
        (short("GA+FT"), "GA+FT needs --unlearn.GA+FT.gamma"),
        (short("KL"), "KL needs --unlearn.KL.gamma"),
        (short("CL_FT_epoch"), "CL_FT_epoch needs"),
        ([*short("KL"), "--gamma", "1", "--unlearn.KL.gamma", "2"], "differ"),
        (short("GA", gamma="1"), "GA has no gamma"),
        (short(lr="fast"), "'fast' is not a number"),
        (short(lr="nan"), "is not a finite number"),
        (short(seed="1.5"), "is not a whole number"),
        (short(sophia="maybe"), "is not 0 or 1"),
        ([*short(), "--lr"], "--unlearn.lr is given without a value"),
        ([*short(), "stray"], "'stray' is neither a flag nor the value of one"),
        (short(model_name=""), "--overall.model_name is not given"),
        (short(forget_ratio="2.5"), "must be a count of rows (a whole number above 1)"),
        (short(forget_ratio="0"), "or a share (above 0, at most 1)"),
        ([*short(forget_ratio="1"), "--self_retain"], "no rows are left to keep"),
        (short(forget_dataset_name="HP"), "HP is not TOFU"),
        (short("GA+FT", gamma="1", retain_dataset_name="none"), "GA+FT reads retain rows"),
        (short("CL", forget_dataset_name="C4"), "rows are texts without questions"),
        (short("RL", retain_dataset_name="wikitext"), "RL draws answers from the retain rows"),
        (short(forget_dataset_name="WMDPALL"), "a count cannot be split over 2 datasets"),
        (short(forget_dataset_name="./nowhere.jsonl"), "no such file"),
    ],
)
def test_what_is_refused(argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(said in text for text in faults(argv)), faults(argv)


def test_all_faults_are_reported_together_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("unlearn_model", [*short("GA+FT", lr="x"), "--nunlearn.lr", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: 3 things are wrong")
