from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from soul_lines import ROOT, faults, loaded, short

from expunge.soul.translate import SCRIPTS, translate

FINETUNE = (
    "--model_name expunge/mini --cache_dir .cache --epochs 3 --batch_size 2 --gradient_accumulation_steps "
    "8 --lr 1e-4 "
)
LORA = "--lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --save_dir files/models/tofu_lora"


@pytest.mark.parametrize(
    ("name", "more", "data"),
    [
        ("Fine_tune_tofu", "--subset full", ["TOFU_QA_full"]),
        ("Fine_tune_hp", "", ["HP_QA", "HP_text"]),
        ("Fine_tune_wmdp", "--domain all --subset retain", ["WMDP_bio_retain", "WMDP_cyber_retain"]),
    ],
)
def test_finetuning(name: str, more: str, data: list[str], data_root: Path) -> None:
    (data_root / "hp").mkdir()
    for stem in ("hp", "hp_qa"):
        (data_root / "hp" / f"{stem}.jsonl").write_text('{"text": "x", "prompt": "x", "response": "x"}\n')
    cfg = loaded(translate(shlex.split(FINETUNE + more + " " + LORA), name))
    assert cfg.get("mode") == "finetune"
    assert list(cfg.section("data.train")) == data
    assert cfg.get("paths.output_dir") == "files/models/tofu_lora"
    adapter = cfg.section("model.adapter")
    assert (adapter["type"], adapter["r"], adapter["alpha"], adapter["dropout"]) == ("lora", 8, 16, 0.05)
    keys = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate")
    assert [cfg.get(f"trainer.args.{key}") for key in keys] == [3, 2, 8, 1e-4]
    assert not cfg.get("eval")


def test_finetuning_without_an_adapter_and_on_another_subset() -> None:
    found = translate(
        shlex.split("--model_name M --save_dir out --lora_r 0 --subset retain90"), "Fine_tune_tofu"
    )
    assert not [text for text in found.overrides if "adapter" in text]
    assert {"data/datasets@data.train=TOFU_QA_retain", "retain_split=retain90"} <= set(found.overrides)
    both = translate(shlex.split("--model_name M --save_dir out"), "Fine_tune_wmdp")
    assert "data/datasets@data.train=[WMDP_cyber_forget,WMDP_cyber_retain]" in both.overrides
    assert len(faults(["--subst", "x"], "Fine_tune_tofu")) == 3
    assert (
        "did you mean 'bio'"
        in faults(["--model_name", "M", "--save_dir", "o", "--domain", "boi"], "Fine_tune_wmdp")[0]
    )


def test_every_script_exists_twice_and_its_help_needs_no_torch(tmp_path: Path) -> None:
    paths = [
        str(folder / f"{name}.py") for folder in (ROOT / "exec", ROOT / "src" / "exec") for name in SCRIPTS
    ]
    code = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    shown = io.StringIO()
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    assert "--model_name" in shown.getvalue(), path
heavy = [name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_torch_is_not_loaded_before_a_fault_is_reported(tmp_path: Path) -> None:
    code = """
import sys
from expunge.soul.main import script
code = script("unlearn_model", sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
    argv: list[Any] = [*short(model_name="./nowhere"), "--forget_ratio", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, "no such folder" in done.stderr) == (2, True), done.stderr
