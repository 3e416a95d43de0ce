"""`Fine_tune_{tofu,hp,wmdp}.py` with plain python and with torchrun have the same loss curve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recorded import read_records

EXEC = Path(__file__).resolve().parents[2] / "exec"
SCRIPTS = {
    "Fine_tune_tofu": ["--subset", "full"],
    "Fine_tune_hp": [],
    "Fine_tune_wmdp": ["--domain", "bio", "--subset", "forget"],
}
COMMON = (
    "--model_name expunge/mini --cache_dir .cache --epochs 2 --batch_size 2 --lr 1e-3 "
    "trainer.args.logging_steps=1 "
    "model.model_args.torch_dtype=float32"
)
WEIGHTS = {
    "full": ["--lora_r", "0"],
    "lora": ["--lora_r", "8", "--lora_alpha", "16", "--lora_dropout", "0.0"],
}


@pytest.fixture
def corpora(data_root: Path, write_rows: Any) -> Path:
    """Twelve rows of different lengths for each script; TOFU's rows already exist."""
    sentence = "the author was born in a small town and writes novels about the sea"
    texts = [" ".join(sentence.split()[: 3 + number % 9]) + f" {number}" for number in range(12)]
    write_rows(
        data_root / "hp" / "hp_qa.jsonl",
        [{"prompt": f"what {text}?", "response": text} for text in texts[:6]],
    )
    write_rows(data_root / "hp" / "hp.jsonl", [{"text": text} for text in texts[6:]])
    write_rows(data_root / "wmdp-corpora" / "bio-forget-corpus.jsonl", [{"text": text} for text in texts])
    return data_root.parent


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder) if "finetune" in record]


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_two_ranks_have_the_loss_curve_of_one(name: str, weights: str, corpora: Path) -> None:
    """Both runs have eight rows per step, each counted once, so the curves are equal up to rounding.

    The LoRA default is tested without dropout. With dropout the curves differ: a rank draws its masks from
    its own random state, in the shapes of its own micro-batches. So two ranks with two micro-batches each
    drop other activations than one rank with four; only the expectation over masks is the same.
    """
    path = str(EXEC / f"{name}.py")
    flags = [path, *COMMON.split(), *SCRIPTS[name], *WEIGHTS[weights]]
    subprocess.run(
        [sys.executable, *flags, "--gradient_accumulation_steps", "4", "--save_dir", "one"],
        check=True,
        timeout=240,
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*torchrun, *flags, "--gradient_accumulation_steps", "2", "--save_dir", "two"],
        check=True,
        timeout=240,
    )
    one, two = losses(corpora / "one"), losses(corpora / "two")
    assert len(one) == 4
    assert one[-1] < one[0]
    assert two == pytest.approx(one, abs=1e-5)
    saved = {path.name for path in (corpora / "two").iterdir()}
    assert ("adapter_model.safetensors" in saved) == (weights == "lora")
    assert ("model.safetensors" in saved) == (weights == "full")
    rows = json.loads((corpora / "two" / "pairs" / "order.json").read_text())
    assert rows
