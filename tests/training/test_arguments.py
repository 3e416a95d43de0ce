from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.training.arguments import steps_per_epoch, training_arguments


def build(tmp_path: Path, n_examples: int = 400, **args: Any) -> Any:
    return training_arguments(
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, **args}, tmp_path, n_examples
    )


def test_warm_up_in_epochs_is_so_many_epochs_of_steps(tmp_path: Path) -> None:
    """forget10: 400 rows / (8 * 4) = 12.5, so 13 steps per epoch; 1.5 epochs of warm-up = 19.5, so 20."""
    args = build(tmp_path, warmup_epochs=1.0)
    assert (steps_per_epoch(400, args), args.warmup_steps) == (13, 13)
    assert build(tmp_path, warmup_epochs=1.5).warmup_steps == 20
    assert build(tmp_path, dataloader_drop_last=True, warmup_epochs=1).warmup_steps == 13
    assert build(tmp_path, warmup_epochs=0).warmup_steps == 0
    assert build(tmp_path, n_examples=3, warmup_epochs=1).warmup_steps == 1


def test_what_the_loop_needs_is_fixed_and_nothing_hides_a_diverging_loss(tmp_path: Path) -> None:
    args = build(tmp_path, remove_unused_columns=True, gradient_checkpointing=True)
    assert args.remove_unused_columns is False
    assert args.label_names == []
    assert args.logging_nan_inf_filter is False
    assert args.gradient_checkpointing is True
    assert args.output_dir == str(tmp_path)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(
            tmp_path,
            learnin_rate=1,
            learning_rate=0,
            num_train_epochs=-1,
            gradient_accumulation_steps=0,
            label_smoothing_factor=0.1,
        )
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    assert "trainer.args.learnin_rate=1: TrainingArguments has no 'learnin_rate'" in text
    assert "did you mean 'learning_rate'" in text
    for message in (
        "learning_rate=0",
        "num_train_epochs=-1",
        "gradient_accumulation_steps=0",
        "label_smoothing_factor",
    ):
        assert message in text


def test_what_transformers_refuses_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save and eval strategy"):
        build(tmp_path, load_best_model_at_end=True, save_strategy="steps", eval_strategy="epoch")
