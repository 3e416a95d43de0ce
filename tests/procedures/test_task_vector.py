"""Task vectors: arithmetic on tensors and on folders of weights, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from expunge.core.errors import UserError
from expunge.procedures.task_vector import task_vector
from expunge.procedures.weights import INDEX, SINGLE, negated, shapes, tensor_files, write_negated


@dataclass
class GivenStages:
    """Stages whose finetuned model already exists."""

    folder: Path
    tuned: Path
    start: Path
    pad_id: int = 0
    asked: list[Any] = field(default_factory=list)

    @property
    def model_folder(self) -> Path:
        return self.folder

    @property
    def stages_folder(self) -> Path:
        return self.folder / "stages"

    @property
    def model_args(self) -> Mapping[str, Any]:
        return {"pretrained_model_name_or_path": str(self.start)}

    def finetuned(self, name: str, side: str, *, args: Any = None, whole: bool = False) -> Path:
        self.asked.append((name, side, args, whole))
        return self.tuned


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def saved(folder: Path, model: Any, **kwargs: Any) -> Path:
    model.save_pretrained(folder, **kwargs)
    return folder


@pytest.fixture
def start(tiny_model: Any, tmp_path: Path) -> Path:
    return saved(tmp_path / "start", tiny_model(seed=1))


@pytest.fixture
def tuned(tiny_model: Any, tmp_path: Path) -> Path:
    return saved(tmp_path / "tuned", tiny_model(seed=2))


def test_hand_worked() -> None:
    """Theta = (1, 2), theta_f = (1.5, 1): the vector is (.5, -1); scale 2 gives (1 - 1, 2 + 2) = (0, 4)."""
    theta_P, tuned_P = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    assert negated(theta_P, tuned_P, 2.0).tolist() == [0.0, 4.0]
    assert negated(theta_P, tuned_P, 1.0).tolist() == [0.5, 3.0]


def test_half_precision_is_rounded_once_at_the_end() -> None:
    """1 - 2 (1.00390625 - 1) = .9921875 is exact in bfloat16 (spacing 1/256 below 1); theta_f rounds to 1."""
    theta_P = torch.ones(1, dtype=torch.bfloat16)
    tuned_P = torch.tensor([1.00390625])
    assert tuned_P.bfloat16().item() == 1.0
    result_P = negated(theta_P, tuned_P, 2.0)
    assert (result_P.dtype, result_P.item()) == (torch.bfloat16, 0.9921875)
    # Two weights in bfloat16: 3 (1.0078125 - 1) = .0234375, and 1 - .0234375 = .9765625 is in bfloat16 too.
    assert negated(theta_P, torch.tensor([1.0078125]).bfloat16(), 3.0).item() == 0.9765625


def test_integers_are_copied_and_scale_0_keeps_every_bit() -> None:
    count_P = torch.tensor([3, 4])
    assert negated(count_P, torch.tensor([9, 9]), 1.0) is count_P
    odd_P = torch.tensor([-0.0, 0.0, 1e-45, torch.inf, 2.5])
    kept_P = negated(odd_P, torch.tensor([-1.0, torch.nan, torch.inf, 0.0, 2.0]), 0.0)
    assert torch.equal(bits(kept_P), bits(odd_P))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folders_with_tied_embeddings(
    dtype: torch.dtype, tiny_model: Any, tuned: Path, tmp_path: Path
) -> None:
    """Tied weights are stored and changed once; all follow the formula, in the dtype of the start model."""
    start = saved(tmp_path / "typed", tiny_model(seed=1).to(dtype))
    out = tmp_path / "out"
    write_negated(start, tuned, out, 0.5)
    ours, theirs, made = (load_file(folder / SINGLE) for folder in (start, tuned, out))
    assert "lm_head.weight" not in made
    for name, theta in ours.items():
        expected = (theta.float() - 0.5 * (theirs[name].float() - theta.float())).to(dtype)
        assert torch.equal(made[name], expected), name
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == dtype
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, made["model.embed_tokens.weight"])


def test_scale_0_is_the_start_model_bit_for_bit(start: Path, tuned: Path, tmp_path: Path) -> None:
    write_negated(start, tuned, tmp_path / "out", 0.0)
    ours, made = load_file(start / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert ours.keys() == made.keys()
    assert all(torch.equal(bits(ours[name]), bits(made[name])) for name in ours)
    assert (tmp_path / "out" / "config.json").read_bytes() == (start / "config.json").read_bytes()


def test_files_are_split_as_in_the_start_model(
    tiny_model: Any, tuned: Path, start: Path, tmp_path: Path
) -> None:
    split = saved(tmp_path / "split", tiny_model(seed=1), max_shard_size="40KB")
    assert len(set(tensor_files(split).values())) > 1
    write_negated(split, tuned, tmp_path / "out", 1.0)
    write_negated(start, tuned, tmp_path / "whole", 1.0)
    assert tensor_files(tmp_path / "out") == tensor_files(split)
    assert (tmp_path / "out" / INDEX).is_file()
    made = {
        name: tensor
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    whole = load_file(tmp_path / "whole" / SINGLE)
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[name], whole[name]) for name in made)


def test_a_file_with_tied_weights_twice_is_saved_again(start: Path, tuned: Path, tmp_path: Path) -> None:
    """Many checkpoints on the hub store both the head and the embeddings that it is tied to."""
    tensors = load_file(start / SINGLE)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        start / SINGLE,
        metadata={"format": "pt"},
    )
    stages = GivenStages(tmp_path / "run", tuned, start)
    task_vector(stages, None, scale=1.0)  # type: ignore[arg-type]  # only the stage reads the rows
    assert stages.asked == [("finetuned", "forget", None, True)]
    made, theirs = load_file(tmp_path / "run" / SINGLE), load_file(tuned / SINGLE)
    assert shapes(tmp_path / "run") == shapes(tuned)
    assert all(torch.equal(made[name], tensors[name] - (theirs[name] - tensors[name])) for name in made)


def test_unsuitable_weights_are_refused(start: Path, tuned: Path, tmp_path: Path) -> None:
    theirs = load_file(tuned / SINGLE)
    name = "model.norm.weight"
    save_file(
        {**theirs, name: torch.full_like(theirs[name], torch.nan)}, tuned / SINGLE, metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match=r"not finite in model.norm.weight: the finetuning diverged") as error:
        write_negated(start, tuned, tmp_path / "out", 1.0)
    assert "learning_rate" in str(error.value)
    save_file(
        {key: tensor for key, tensor in theirs.items() if key != name},
        tuned / SINGLE,
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"have different tensors, such as model.norm.weight"):
        write_negated(start, tuned, tmp_path / "out", 1.0)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    stages = GivenStages(tmp_path / "run", tuned, start)
    with pytest.raises(UserError, match=r"quantised weights \(gptq\)"):
        task_vector(stages, None)  # type: ignore[arg-type]
    assert stages.asked == []
