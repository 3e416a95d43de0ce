"""Training of an adapter: which weights move, what is saved, and how a run resumes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge.models.adapter_reference import AdapterOff, FrozenAdapter
from expunge.models.adapters import attach_adapter
from expunge.models.reference import FrozenCopy
from expunge.training import checkpoint as checkpoints
from expunge.training.listeners import Listener, Moment
from ranks import on_ranks
from recorded import WALL_CLOCK, read_records

FIVE_STEPS: dict[str, Any] = {
    "max_steps": 5,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
}
NPO_KL = {"retain": "kl"}


class Killed(BaseException):
    """Simulates a kill: no handler of the code under test catches it."""


@pytest.fixture
def adapted(tiny_model: Any) -> Callable[..., Any]:
    """Builds the model of a run: a base with dropout and a new adapter, or one that was trained before."""

    def build(trained: bool = False) -> Any:
        base = tiny_model(seed=1, num_hidden_layers=1, attention_dropout=0.1)
        model = attach_adapter(base, {"type": "lora", "r": 2, "dropout": 0.2}, for_training=True)
        draw = torch.Generator().manual_seed(8)
        for name, parameter in model.named_parameters():
            if trained and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=draw)
        return model

    return build


def weights(model: Any, part: str) -> dict[str, torch.Tensor]:
    """Copies of the weights of a part: base, default (adapter in training) or reference (frozen one)."""
    named = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parts = {
        name: next((kind for kind in ("default", "reference") if f".{kind}." in name), "base")
        for name in named
    }
    return {name: value for name, value in named.items() if parts[name] == part}


class Kills(Listener):
    """Ends the run in the middle of its third step."""

    def before_update(self, moment: Moment) -> None:
        if moment.step == 2:
            raise Killed


def end_of(run: Any, folder: Path) -> dict[str, Any]:
    last = folder / "checkpoint-5"
    records = [
        {key: value for key, value in record.items() if key not in WALL_CLOCK}
        for record in read_records(folder)
    ]
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    moments = {
        f"{number}.{key}": value
        for number, state in optimizer["state"].items()
        for key, value in state.items()
    }
    return {
        "records": records,
        "adapter": load_file(last / "adapter_model.safetensors"),
        "in memory": weights(run.model, "default"),
        "optimizer": moments,
        "rng": load_file(last / "rng_state_0.safetensors"),
    }


def test_five_steps_move_the_adapter_alone_and_like_with_a_frozen_copy(
    adapted: Callable[..., Any], trainer: Any, objective: Callable[..., Any], tmp_path: Path
):
    ends = {}
    for trained, kind in ((False, AdapterOff), (True, FrozenAdapter)):
        for reference in (kind, FrozenCopy):
            model = adapted(trained)
            extra = {"reference": reference(model)}
            base, begun = weights(model, "base"), weights(model, "default")
            name = f"{trained}-{reference.__name__}"
            run = trainer(
                folder=tmp_path / name, model=model, task=objective(**NPO_KL), extra=extra, **FIVE_STEPS
            )
            run.run()
            assert run.state.global_step == 5
            assert all(torch.equal(value, base[key]) for key, value in weights(model, "base").items())
            ends[name] = weights(model, "default")
            # B is 0 at the start, so A moves from the second step on.
            assert not any(torch.equal(value, begun[key]) for key, value in ends[name].items())
            assert model.active_adapter == "default"
        for key, value in ends[f"{trained}-{kind.__name__}"].items():
            torch.testing.assert_close(value, ends[f"{trained}-FrozenCopy"][key], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("trained", "kind"), [(False, AdapterOff), (True, FrozenAdapter)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    trained: bool,
    kind: Any,
    adapted: Callable[..., Any],
    trainer: Any,
    objective: Callable[..., Any],
    tmp_path: Path,
):
    def start(folder: Path) -> Any:
        model = adapted(trained)
        return trainer(
            folder=folder,
            model=model,
            task=objective(**NPO_KL),
            extra={"reference": kind(model)},
            **FIVE_STEPS,
        )

    whole = start(tmp_path / "whole")
    whole.run()
    expected = end_of(whole, tmp_path / "whole")
    killed = start(tmp_path / "run")
    reference = weights(killed.model, "reference")
    killed.listeners.append(Kills())
    with pytest.raises(Killed):
        killed.run()
    newest = checkpoints.newest_complete_checkpoint(tmp_path / "run")
    assert newest == tmp_path / "run" / "checkpoint-2"
    assert (newest / "base_model.json").is_file()
    assert not (newest / "model.safetensors").exists()
    assert not [path for path in newest.iterdir() if path.is_dir()]
    torch.manual_seed(99)
    resumed = start(tmp_path / "run")
    resumed.run(True)
    found = end_of(resumed, tmp_path / "run")
    assert found["records"] == expected["records"]
    for part in ("adapter", "in memory", "optimizer", "rng"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][key]) for key, value in found[part].items()), part
    assert all(
        torch.equal(value, reference[key]) for key, value in weights(resumed.model, "reference").items()
    )
    assert bool(reference) == trained


def test_checkpointed_activations_train_the_adapter_alike(
    adapted: Callable[..., Any], trainer: Any, tmp_path: Path
):
    ends = []
    for checkpointed in (False, True):
        model = adapted(True)
        settings = {**FIVE_STEPS, "save_strategy": "no", "gradient_checkpointing": checkpointed}
        trainer(folder=tmp_path / str(checkpointed), model=model, **settings).run()
        ends.append(weights(model, "default"))
    assert all(torch.allclose(value, ends[0][key], rtol=0, atol=1e-6) for key, value in ends[1].items())


def test_the_best_adapter_is_loaded_at_the_end(adapted: Callable[..., Any], trainer: Any, tmp_path: Path):
    model = adapted()

    def evaluator(_: Any, step: int) -> dict[str, float | None]:
        return {"forgetting": {2: 0.9, 4: 0.7}[step]}

    best = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "forgetting",
    }
    extra = {"reference": AdapterOff(model), "evaluator": evaluator}
    settings = {**FIVE_STEPS, "max_steps": 4, **best, "greater_is_better": True}
    trainer(folder=tmp_path / "run", model=model, extra=extra, **settings).run()
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    found = {name.replace(".default", ""): value for name, value in weights(model, "default").items()}
    assert found.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in found.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("trained", "kind"), [(False, AdapterOff), (True, FrozenAdapter)])
def test_two_ranks_train_as_one(
    trained: bool, kind: Any, tiny_model: Any, trainer: Any, objective: Callable[..., Any], tmp_path: Path
) -> None:
    def run(name: str, **sizes: Any) -> None:
        model = attach_adapter(
            tiny_model(seed=1, num_hidden_layers=1),
            {"type": "lora", "r": 2, "dropout": 0.0},
            for_training=True,
        )
        for key, parameter in model.named_parameters():
            if trained and "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(8))
        settings = {**FIVE_STEPS, "save_steps": 5, "learning_rate": 1e-3, "use_cpu": True, **sizes}
        trainer(
            folder=tmp_path / name,
            model=model,
            task=objective(**NPO_KL),
            extra={"reference": kind(model)},
            **settings,
        ).run()

    run("one", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    on_ranks(
        2,
        lambda: run("two", per_device_train_batch_size=1, gradient_accumulation_steps=2, ddp_backend="gloo"),
    )
    one, two = (
        load_file(tmp_path / name / "checkpoint-5" / "adapter_model.safetensors") for name in ("one", "two")
    )
    assert all(torch.allclose(value, two[key], rtol=0, atol=2e-5) for key, value in one.items())
