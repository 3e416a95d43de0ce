"""The rest of a checkpoint besides weights, optimizer and scheduler: running sums, plan, objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.core.errors import Fault, UserError
from expunge.core.files import read_json, write_json

PLAN_FILE = "plan.json"
OBJECTIVE_TENSORS, OBJECTIVE_VALUES = "objective.safetensors", "objective.json"


@dataclass
class RunningSums:
    """Sums of one rank since the last record.

    Attributes:
        loss: sum of the steps' losses, a float32 scalar.
        term_K: sums of the unweighted values of `Driver.names`, [K] float32.
        logged_loss: sum of the losses of all steps up to the last record, of all ranks together.
        logged_step: step of the last record.
    """

    loss: Tensor
    term_K: Tensor
    logged_loss: float
    logged_step: int

    def save(self, folder: Path, rank: int) -> None:
        """Write the sums of a rank into a checkpoint."""
        tensors = {
            "loss": self.loss.detach().cpu().reshape(1).clone(),
            "term_K": self.term_K.detach().cpu().clone(),
            "logged_loss": torch.tensor([self.logged_loss], dtype=torch.float64),
            "logged_step": torch.tensor([self.logged_step], dtype=torch.int64),
        }
        save_file(tensors, str(folder / f"sums_{rank}.safetensors"))

    @classmethod
    def load(cls, folder: Path, rank: int, world_size: int) -> RunningSums:
        """The sums of a rank; if the number of ranks changed, each rank takes an equal part of the total."""
        parts = [load_file(str(path)) for path in sorted(folder.glob("sums_*.safetensors"))]
        if len(parts) == world_size:
            own = load_file(str(folder / f"sums_{rank}.safetensors"))
            loss, term_K = own["loss"].squeeze(), own["term_K"]
        else:
            # A rank's loss is its share times the number of ranks, so the mean is the loss. Shares of terms
            # add up.
            loss = torch.stack([part["loss"].squeeze() for part in parts]).mean()
            term_K = torch.stack([part["term_K"] for part in parts]).sum(0) / world_size
        return cls(loss, term_K, float(parts[0]["logged_loss"].item()), int(parts[0]["logged_step"].item()))


@dataclass(frozen=True)
class Invariants:
    """Settings that must be equal for a resumed run to equal an uninterrupted one.

    Attributes:
        rows_per_step: rows of an optimizer step, over micro-batches and ranks.
        rows: rows of the training set.
        seed: seed of the order of rows.
        terms: names of the objective's terms.
    """

    rows_per_step: int
    rows: int
    seed: int
    terms: tuple[str, ...]

    def save(self, folder: Path, records: int, weights_only: bool = False) -> None:
        """Write the plan into a checkpoint, with the number of records in the log."""
        write_json(folder / PLAN_FILE, {**vars(self), "records": records, "weights_only": weights_only})

    def check(self, folder: Path) -> int:
        """Compare with the plan in a checkpoint; returns the number of records of its log.

        Raises:
            UserError: a setting differs (with both values), or the checkpoint holds no optimizer state.
        """
        stored = read_json(folder / PLAN_FILE)
        if stored.get("weights_only"):
            raise UserError(
                f"{folder} holds weights only (save_only_model), so the run cannot resume from it",
                "start again with overwrite=true",
            )
        now: dict[str, Any] = {**vars(self), "terms": list(self.terms)}
        faults = [
            Fault(
                f"{folder} was made with {key} = {stored.get(key)}, this run has {value}",
                "resume with the settings of that run",
            )
            for key, value in now.items()
            if stored.get(key) != value
        ]
        if faults:
            raise UserError.of(faults)
        return int(stored["records"])


def save_objective(objective: Any, folder: Path) -> None:
    """Write an objective's state, if it has any: tensors as safetensors, the rest as JSON."""
    state: dict[str, Any] = objective.state_dict()
    tensors = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if tensors:
        save_file(tensors, str(folder / OBJECTIVE_TENSORS))
    values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if values:
        write_json(folder / OBJECTIVE_VALUES, values)


def load_objective(objective: Any, folder: Path) -> None:
    """Restore an objective's state from a checkpoint that has one."""
    state: dict[str, Any] = {}
    if (folder / OBJECTIVE_TENSORS).is_file():
        state |= load_file(str(folder / OBJECTIVE_TENSORS))
    if (folder / OBJECTIVE_VALUES).is_file():
        state |= read_json(folder / OBJECTIVE_VALUES)
    if state:
        objective.load_state_dict(state)
