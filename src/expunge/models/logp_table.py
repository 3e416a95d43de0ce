"""A table of per-token log-probs by row, stored as safetensors, with a JSON file that identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.core import files
from expunge.core.errors import UserError
from expunge.core.fingerprint import LENGTH
from expunge.lm.labels import HostLabels

SCHEMA = 1


@dataclass(frozen=True)
class LogpTable:
    """Log-probabilities of the labels of rows, concatenated.

    Attributes:
        row_R: [R] int64 row numbers, ascending.
        start_R: [R + 1] int64, start of the labels of each row, and the end of the last row.
        logp_L: [L] float32 log-probabilities, nats.
        label_L: [L] int64 label tokens; each look-up compares them, so a changed row is detected.
    """

    row_R: Tensor
    start_R: Tensor
    logp_L: Tensor
    label_L: Tensor

    @classmethod
    def of(cls, by_row: Mapping[int, tuple[Tensor, Tensor]]) -> LogpTable:
        """Build a table from (log-probs, labels) by row."""
        rows = sorted(by_row)
        lengths = torch.tensor([0, *(len(by_row[row][0]) for row in rows)], dtype=torch.int64)
        empty = torch.zeros(0)
        logp_L = torch.cat([empty, *(by_row[row][0].float() for row in rows)])
        label_L = torch.cat([empty.long(), *(by_row[row][1].long() for row in rows)])
        return cls(torch.tensor(rows, dtype=torch.int64), lengths.cumsum(0), logp_L, label_L)

    def look_up(self, labels: HostLabels) -> Tensor:
        """Log-probs of the labels of some rows, all on the CPU.

        Args:
            labels: the rows and their labels, which must equal the labels in the table.

        Returns:
            [M] float32, row after row.
        """
        row_R, count_R = labels.row_R, labels.count_R
        missing = f"rows {row_R.tolist()} are not all in the reference table"
        assert len(self.row_R) or not len(row_R), missing
        if not len(row_R):
            return self.logp_L[:0]
        place_R = torch.searchsorted(self.row_R, row_R).clamp(max=len(self.row_R) - 1)
        assert torch.equal(self.row_R[place_R], row_R), missing
        start_R = self.start_R[place_R]
        assert torch.equal(self.start_R[place_R + 1] - start_R, count_R), (
            "a row of the reference table has another number of labels than the row in the batch"
        )
        before_R = count_R.cumsum(0) - count_R
        source_M = (start_R - before_R).repeat_interleave(count_R) + torch.arange(len(labels.label_M))
        assert torch.equal(self.label_L[source_M], labels.label_M), (
            "a row of the reference table has other labels than the row in the batch"
        )
        return self.logp_L[source_M]

    def write(self, folder: Path, name: str, key: Mapping[str, Any]) -> None:
        """Write `<name>.safetensors`, then `<name>.json`; a table without a matching JSON file is ignored."""
        path = folder / f"{name}.safetensors"
        tensors = {"row": self.row_R, "start": self.start_R, "logp": self.logp_L, "label": self.label_L}
        files.atomic_write(path, lambda temporary: save_file(tensors, temporary))
        about = {
            "schema": SCHEMA,
            "key": dict(key),
            "rows": len(self.row_R),
            "tokens": len(self.logp_L),
            "content": self._content(),
        }
        files.write_json(folder / f"{name}.json", about)

    @classmethod
    def read(cls, folder: Path, name: str, key: Mapping[str, Any]) -> LogpTable | None:
        """The table that was written for this key; None if it is missing, damaged, or has another key."""
        path = folder / f"{name}.safetensors"
        try:
            about = files.read_json(folder / f"{name}.json")
            tensors = load_file(path)
            table = cls(tensors["row"], tensors["start"], tensors["logp"], tensors["label"])
        except (UserError, OSError, SafetensorError, KeyError):
            return None
        fits = isinstance(about, dict) and about.get("schema") == SCHEMA and about.get("key") == dict(key)
        return table if fits and about.get("content") == table._content() else None

    def _content(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.row_R, self.start_R, self.logp_L, self.label_L):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:LENGTH]
