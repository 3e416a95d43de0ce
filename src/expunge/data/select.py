"""Select part of the rows of a data set, or the complement; make rows from records of another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.core.errors import Fault, UserError, unknown
from expunge.data.rows import Row, RowSet, load_rows, row_ids
from expunge.data.safe_pku import unsafe_answers
from expunge.lm.runtime import generator

RESHAPES = {"unsafe_answers": unsafe_answers}
"""Values of `reshape`: functions from the records of a source to records with question and answer."""
KEYS = ("ratio", "seed", "complement")
ROUNDING = 1e-9
"""Added to a share of the rows before rounding down: .29 * 100 is 28.999999999999996."""


@dataclass(frozen=True)
class Selection:
    """Which rows to take.

    Attributes:
        ratio: above 1: a count of rows; at most 1: a share of the rows, rounded down.
        seed: seed of the draw, which depends only on it and on the number of rows.
        complement: take the rows that are not drawn.
    """

    ratio: float = 1.0
    seed: int = 0
    complement: bool = False

    @classmethod
    def of(cls, select: Mapping[str, Any]) -> Selection:
        """Read the argument `select` of a data handler; a `UserError` names every wrong key and value."""
        faults = [unknown("key of select", str(key), KEYS) for key in select if key not in KEYS]
        ratio, seed, complement = (
            select.get(key, default) for key, default in (("ratio", 1.0), ("seed", 0), ("complement", False))
        )
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not ratio > 0 or (ratio > 1 and not float(ratio).is_integer()):
            hint = "give a count of rows (a whole number above 1) or a share (above 0, at most 1)"
            faults.append(Fault(f"select.ratio is {ratio!r}", hint))
        if isinstance(seed, bool) or not isinstance(seed, int):
            faults.append(Fault(f"select.seed is {seed!r}", "give a whole number"))
        if not isinstance(complement, bool):
            faults.append(Fault(f"select.complement is {complement!r}", "give true or false"))
        if faults:
            raise UserError.of(faults)
        return cls(float(ratio), seed, complement)

    def count(self, size: int) -> int:
        """Number of rows that are drawn from `size` rows."""
        return int(self.ratio) if self.ratio > 1 else int(size * self.ratio + ROUNDING)

    def positions(self, size: int) -> list[int]:
        """The positions in `range(size)` that are kept, ascending."""
        order = torch.randperm(size, generator=generator(self.seed, "select", size))
        drawn = order[: self.count(size)].tolist()
        return sorted(set(range(size)) - set(drawn)) if self.complement else sorted(drawn)


def select_rows(rows: RowSet, select: Mapping[str, Any] | None) -> RowSet:
    """Take part of the rows, see `Selection`; they keep their order and their ids. None = all rows.

    Raises:
        UserError: more rows are requested than there are, or no row is left.
    """
    if select is None:
        return rows
    chosen = Selection.of(select)
    if chosen.count(len(rows)) > len(rows):
        raise UserError(
            f"select.ratio={chosen.ratio:g} requests {chosen.count(len(rows))} rows, but {rows.source} has "
            f"only {len(rows)}",
            f"give a count up to {len(rows)}, or a share of at most 1",
        )
    kept = [rows[position] for position in chosen.positions(len(rows))]
    if not kept:
        part = f"select.ratio={chosen.ratio:g} of {len(rows)} rows"
        what = "the complement of all rows" if chosen.complement else part
        hint = "select fewer rows, so that some are left" if chosen.complement else "select more rows"
        raise UserError(f"{what} of {rows.source} is empty", hint)
    return rows.having(kept)


def chosen_rows(
    hf_args: Mapping[str, Any],
    data_root: Path | None,
    keys: Sequence[str],
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> RowSet:
    """Load the rows of a data set, see `load_rows`; reshape them, by one of `RESHAPES`; then select.

    Raises:
        UserError: the reshape is unknown, or the rows have a fault.
    """
    if reshape is None:
        return select_rows(load_rows(hf_args, data_root, keys), select)
    if reshape not in RESHAPES:
        raise UserError.of([unknown("reshape", reshape, list(RESHAPES))])
    source = load_rows(hf_args, data_root)
    fields = RESHAPES[reshape]([row.fields for row in source], source.source)
    rows = [Row(row_id, 0, row) for row_id, row in zip(row_ids(fields, keys), fields, strict=True)]
    return select_rows(source.having(rows), select)
