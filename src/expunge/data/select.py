"""A part of a data set's rows, and its complement; and rows made of records of another form."""

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
"""What `reshape` can name: functions from a source's records to records with question and answer."""
KEYS = ("ratio", "seed", "complement")
ROUNDING = 1e-9
"""Added to a share of the rows before it is cut to a whole number: .29 * 100 is 28.999999999999996."""


@dataclass(frozen=True)
class Selection:
    """Which rows are taken.

    Attributes:
        ratio: above 1 a count of rows, at most 1 a share of them, rounded down.
        seed: of the draw, which depends on nothing else but the number of rows.
        complement: take the rows that the same selection without it leaves.
    """

    ratio: float = 1.0
    seed: int = 0
    complement: bool = False

    @classmethod
    def of(cls, select: Mapping[str, Any]) -> Selection:
        """Read the argument `select` of a data handler.

        Raises:
            UserError: an unknown key or a value of the wrong kind.
        """
        faults = [unknown("key of select", str(key), KEYS) for key in select if key not in KEYS]
        ratio, seed, complement = (
            select.get("ratio", 1.0),
            select.get("seed", 0),
            select.get("complement", False),
        )
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio > 0:
            faults.append(
                Fault(
                    f"select.ratio is {ratio!r}",
                    "give a count of rows above 1, or a share above 0 and at most 1",
                )
            )
        elif ratio > 1 and not float(ratio).is_integer():
            faults.append(
                Fault(
                    f"select.ratio is {ratio!r}: above 1 it is a count of rows",
                    "give a whole number, or a share at most 1",
                )
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            faults.append(Fault(f"select.seed is {seed!r}", "give a whole number"))
        if not isinstance(complement, bool):
            faults.append(Fault(f"select.complement is {complement!r}", "give true or false"))
        if faults:
            raise UserError.of(faults)
        return cls(float(ratio), seed, complement)

    def count(self, size: int) -> int:
        """How many of `size` rows the draw takes."""
        return int(self.ratio) if self.ratio > 1 else int(size * self.ratio + ROUNDING)

    def positions(self, size: int) -> list[int]:
        """The positions that are kept out of `size`, ascending."""
        drawn = torch.randperm(size, generator=generator(self.seed, "select", size))[
            : self.count(size)
        ].tolist()
        return sorted(set(range(size)) - set(drawn)) if self.complement else sorted(drawn)


def select_rows(rows: RowSet, select: Mapping[str, Any] | None) -> RowSet:
    """Take a part of the rows, in their order; they keep their ids.

    Args:
        rows: all rows.
        select: `{ratio, seed, complement}`, see `Selection`; None = all rows.

    Raises:
        UserError: more rows are asked for than there are, or none is left.
    """
    if select is None:
        return rows
    chosen = Selection.of(select)
    if chosen.count(len(rows)) > len(rows):
        raise UserError(
            f"select.ratio={chosen.ratio:g} asks for {chosen.count(len(rows))} rows, and {rows.source} has {len(rows)}",
            f"give a count up to {len(rows)}, or a share at most 1",
        )
    kept = [rows[position] for position in chosen.positions(len(rows))]
    if not kept:
        what = (
            "the complement of all rows"
            if chosen.complement
            else f"select.ratio={chosen.ratio:g} of {len(rows)} rows"
        )
        raise UserError(
            f"{what} of {rows.source} is empty",
            "take fewer rows, so that others are left" if chosen.complement else "take more",
        )
    return RowSet.of(rows.name, kept, rows.source, rows.file)


def chosen_rows(
    hf_args: Mapping[str, Any],
    data_root: Path | None,
    keys: Sequence[str],
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> RowSet:
    """Rows of a data set as `load_rows` reads them, reshaped, and of these the selected ones.

    Args:
        hf_args: where the rows are.
        data_root: the folder of local data sets.
        keys: keys that each row must have.
        select: which rows, see `select_rows`.
        reshape: one of `RESHAPES`; None = the rows are the source's records.

    Raises:
        UserError: an unknown reshape, or whatever is wrong with the rows.
    """
    if reshape is None:
        return select_rows(load_rows(hf_args, data_root, keys), select)
    if reshape not in RESHAPES:
        raise UserError.of([unknown("reshape", reshape, list(RESHAPES))])
    source = load_rows(hf_args, data_root)
    fields = RESHAPES[reshape]([row.fields for row in source], source.source)
    rows = [Row(row_id, 0, row) for row_id, row in zip(row_ids(fields, keys), fields, strict=True)]
    return select_rows(RowSet.of(source.name, rows, source.source, source.file), select)
