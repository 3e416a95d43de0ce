"""What the launcher was asked for is compared with what it started."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from expunge.config.training_fields import HONOURED, NO_EFFECT, REFUSED, known_fields, refusals
from expunge.core.errors import UserError
from expunge.training.launch import check_precision, processes_asked

ACCELERATE = "/somewhere/bin/accelerate"


def test_every_training_argument_of_the_installed_version_is_in_the_table() -> None:
    here = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert here - known_fields() == set()
    assert not HONOURED & NO_EFFECT.keys()
    assert not HONOURED & REFUSED.keys()
    assert not NO_EFFECT.keys() & REFUSED.keys()


def test_a_refused_argument_passes_at_a_value_that_asks_for_nothing(tmp_path: Path) -> None:
    built = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    asking = {"accelerator_config", "fsdp_config"}  # filled in by transformers itself
    given = {name: getattr(built, name) for name in REFUSED.keys() - asking if hasattr(built, name)}
    assert refusals(given) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("deepspeed", "zero3.json"), ("fsdp", "full_shard"), ("torch_compile", True), ("push_to_hub", True),
     ("label_smoothing_factor", 0.1),
     ("auto_find_batch_size", True), ("use_liger_kernel", True), ("ignore_data_skip", True)],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_the_key_and_the_reason(name: str, value: object) -> None:
    (fault,) = refusals({name: value, "learning_rate": 1e-5})
    assert fault.message.startswith(f"trainer.args.{name}={value}: ")
    assert len(fault.hint) > 10


def test_the_number_of_processes_is_read_as_accelerate_reads_it(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\n")
    launch = [sys.executable, ACCELERATE, "launch"]
    assert processes_asked([*launch, "--config_file", str(config), "src/train.py", "trainer=NPO"]) == 2
    assert (
        processes_asked([*launch, "--num_processes", "4", "--config_file", str(config), "src/train.py"]) == 4
    )
    assert processes_asked([*launch, f"--config_file={config}", "src/train.py", "--num_processes", "9"]) == 2
    assert processes_asked(["/bin/bash", "launch", "src/train.py"]) is None
    assert processes_asked(["pytest"]) is None


def test_the_launchers_precision_is_that_of_the_training_or_an_error() -> None:
    for asked, here in (("no", "bf16"), ("bf16", "bf16"), ("fp16", "fp16")):
        check_precision({"ACCELERATE_MIXED_PRECISION": asked}, here)
    check_precision({}, "bf16")
    with pytest.raises(UserError, match=r"mixed_precision=bf16.*\n.*torch_dtype"):
        check_precision({"ACCELERATE_MIXED_PRECISION": "bf16"}, "no")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n",
            "asked for 2 processes but started one",
        ),
        (
            "distributed_type: FSDP\nnum_processes: 2\nuse_cpu: true\nfsdp_config: {fsdp_version: 2}\n",
            "parallel=fsdp2 was asked for, but accelerate started MULTI_CPU",
        ),
    ],
)
def test_a_launch_that_comes_up_as_something_else_is_an_error(
    config: str, message: str, tmp_path: Path
) -> None:
    """With the real `accelerate launch`: earlier versions trained both in another way, without a message."""
    (tmp_path / "launch.yaml").write_text(f"compute_environment: LOCAL_MACHINE\n{config}")
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    words += [str(tmp_path / "launch.yaml"), str(root / "src" / "train.py"), "--config-name=unlearn.yaml"]
    words += [
        "experiment=unlearn/mini/default",
        "trainer=NPO",
        "task_name=x",
        f"paths.output_dir={tmp_path / 'x'}",
    ]
    words += ["model.model_args.pretrained_model_name_or_path=expunge/mini", "eval=null"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
    assert not (tmp_path / "x").exists()
