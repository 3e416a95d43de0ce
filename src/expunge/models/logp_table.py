"""A table of per-token log-probs by row, kept as safetensors with a JSON that says what it belongs to."""

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

SCHEMA = 1


@dataclass(frozen=True)
class LogpTable:
    """Log-probabilities of the labels of rows, end to end.

    Attributes:
        row_R: [R] int64 row numbers, ascending.
        start_R: [R + 1] int64, where each row's labels begin, and the end.
        logp_L: [L] float32 log-probabilities, nats.
        label_L: [L] int64 label tokens, which prove at every look-up that the row is the one that was
            computed.
    """

    row_R: Tensor
    start_R: Tensor
    logp_L: Tensor
    label_L: Tensor

    @classmethod
    def of(cls, by_row: Mapping[int, tuple[Tensor, Tensor]]) -> LogpTable:
        """A table of (log-probs, labels) by row."""
        rows = sorted(by_row)
        lengths = torch.tensor([0, *(len(by_row[row][0]) for row in rows)], dtype=torch.int64)
        empty = torch.zeros(0)
        logp_L = torch.cat([empty, *(by_row[row][0].float() for row in rows)])
        label_L = torch.cat([empty.long(), *(by_row[row][1].long() for row in rows)])
        return cls(torch.tensor(rows, dtype=torch.int64), lengths.cumsum(0), logp_L, label_L)

    def __contains__(self, row: int) -> bool:
        return bool((self.row_R == row).any())

    def merged(self, other: LogpTable) -> LogpTable:
        """The rows of both; where both have one, the other's."""
        return LogpTable.of({**self._by_row(), **other._by_row()})

    def look_up(self, row_B: Tensor, label_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Log-probs of rows, laid out as their labels are.

        Args:
            row_B: [B] int64 row numbers.
            label_BN: [B, N] int64 labels of the batch.
            mask_BN: [B, N] True = a label.

        Returns:
            [B, N] float32, 0 where masked.
        """
        missing = f"rows {row_B.tolist()} are not all in the reference table"
        assert len(self.row_R), missing
        place_B = torch.searchsorted(self.row_R, row_B).clamp(max=len(self.row_R) - 1)
        assert torch.equal(self.row_R[place_B], row_B), missing
        start_B, stop_B = self.start_R[place_B], self.start_R[place_B + 1]
        assert torch.equal(stop_B - start_B, mask_BN.sum(-1)), (
            "a row of the reference table has another number of labels than the batch's"
        )
        if not len(self.logp_L):
            return torch.zeros(mask_BN.shape)
        source_BN = (start_B.unsqueeze(-1) + torch.arange(mask_BN.shape[1])).clamp(max=len(self.logp_L) - 1)
        assert not ((self.label_L[source_BN] != label_BN) & mask_BN).any(), (
            "a row of the reference table has other labels than the batch's"
        )
        return torch.where(mask_BN, self.logp_L[source_BN], torch.zeros(()))

    def write(self, folder: Path, name: str, key: Mapping[str, Any]) -> None:
        """Write `<name>.safetensors`, then `<name>.json`, which vouches for it: a table without one that fits does not count."""
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
        """The table written for the same key; None where there is none, it is damaged, or it belongs to something else."""
        path = folder / f"{name}.safetensors"
        try:
            about = files.read_json(folder / f"{name}.json")
            tensors = load_file(path)
            table = cls(tensors["row"], tensors["start"], tensors["logp"], tensors["label"])
        except (UserError, OSError, SafetensorError, KeyError):
            return None
        fits = isinstance(about, dict) and about.get("schema") == SCHEMA and about.get("key") == dict(key)
        return table if fits and about.get("content") == table._content() else None

    def _by_row(self) -> dict[int, tuple[Tensor, Tensor]]:
        spans = zip(self.row_R.tolist(), self.start_R.tolist(), self.start_R.tolist()[1:], strict=False)
        return {row: (self.logp_L[start:stop], self.label_L[start:stop]) for row, start, stop in spans}

    def _content(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.row_R, self.start_R, self.logp_L, self.label_L):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:LENGTH]
