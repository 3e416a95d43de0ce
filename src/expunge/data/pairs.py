"""Pairs of forget and retain rows, drawn before training from (seed, epoch, index) and stored with the run.

Nothing is drawn while batches are made, so ranks, worker processes and resumed runs agree on every pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset as TorchDataset

from expunge.core.errors import Fault, UserError
from expunge.core.files import read_json, write_json
from expunge.core.sides import SIDE_NAMES, SideName
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.rows import SHOWN, RowSet, base_id
from expunge.lm.runtime import generator


def draw_pairs(n_anchor: int, n_other: int, seed: int, epoch: int) -> list[int]:
    """Draw a row of the other side for each anchor row of an epoch: `n_anchor` positions below `n_other`.

    The draw concatenates permutations of the other side, so no row is repeated before all rows are used. Each
    epoch, from 0, has its own draws.
    """
    assert n_other > 0, "nothing to draw from"
    drawn: list[int] = []
    while len(drawn) < n_anchor:
        chance = generator(seed, "pairs", epoch, len(drawn) // n_other)
        drawn += torch.randperm(n_other, generator=chance).tolist()
    return drawn[:n_anchor]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a run.

    Attributes:
        anchor: the side that an epoch runs over.
        n_anchor: number of its rows.
        n_other: number of rows of the other side.
        seed: seed of the draws.
        epochs: `epochs[e][i]` = position on the other side for anchor row i in epoch e.
        data: fingerprints of the sides by name.
    """

    anchor: SideName
    n_anchor: int
    n_other: int
    seed: int
    epochs: tuple[tuple[int, ...], ...]
    data: Mapping[str, str]

    def at(self, epoch: int) -> tuple[int, ...]:
        """The pairs of an epoch; an epoch that is not stored (a longer run) is drawn by the same rule."""
        if epoch < len(self.epochs):
            return self.epochs[epoch]
        return tuple(draw_pairs(self.n_anchor, self.n_other, self.seed, epoch))


def pairs_of(
    forget: Dataset, retain: Dataset, seed: int, n_epochs: int, anchor: SideName = "forget"
) -> Pairs:
    """Draw the pairs of all epochs of a run."""
    n_anchor, n_other = (len(forget), len(retain)) if anchor == "forget" else (len(retain), len(forget))
    epochs = tuple(tuple(draw_pairs(n_anchor, n_other, seed, epoch)) for epoch in range(n_epochs))
    return Pairs(
        anchor, n_anchor, n_other, seed, epochs, {"forget": forget.fingerprint, "retain": retain.fingerprint}
    )


def save_pairs(path: Path, pairs: Pairs) -> None:
    """Write the pairs as JSON, atomically."""
    write_json(path, asdict(pairs), indent=None)


def load_pairs(path: Path) -> Pairs:
    """Read what `save_pairs` wrote.

    Raises:
        UserError: the file does not exist or is not a file of pairs.
    """
    value = read_json(path)
    try:
        epochs = tuple(tuple(int(position) for position in epoch) for epoch in value["epochs"])
        n_anchor, n_other, seed = (int(value[key]) for key in ("n_anchor", "n_other", "seed"))
        pairs = Pairs(value["anchor"], n_anchor, n_other, seed, epochs, dict(value["data"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a file of pairs: {error!r}", "remove it; pairs are drawn again from the seed"
        ) from error
    sound = all(
        len(epoch) == pairs.n_anchor and all(0 <= position < pairs.n_other for position in epoch)
        for epoch in epochs
    )
    if not sound or pairs.anchor not in SIDE_NAMES:
        raise UserError(
            f"{path} is damaged: its pairs do not match its own row counts",
            "remove it; pairs are drawn again from the seed",
        )
    return pairs


class PairedDataset(TorchDataset[dict[str, Encoded]]):
    """Forget and retain examples side by side; as long as the anchor side.

    Item i is `{"forget": ..., "retain": ..., "alternate": ...}`, restricted to the sides in `sides`. With
    only one data set, an item has only the sides of that data set.

    Args:
        forget: the forget side; None if nothing reads it.
        retain: the retain side; None if nothing reads it.
        pairs: required if both sides are given.
        sides: the sides to return; None = all available sides.

    Raises:
        UserError: a side in `sides` is not given, the forget data has no alternates, or the pairs belong to
            other data.
    """

    def __init__(
        self,
        forget: Dataset | None = None,
        retain: Dataset | None = None,
        pairs: Pairs | None = None,
        sides: Collection[str] | None = None,
    ) -> None:
        self._examples = _sides(forget, retain, sides)
        self._pairs = pairs if forget is not None and retain is not None else None
        if forget is not None and retain is not None:
            if pairs is None:
                raise UserError("forget and retain rows need pairs", "create the pairs with pairs_of")
            if dict(pairs.data) != {"forget": forget.fingerprint, "retain": retain.fingerprint}:
                raise UserError(
                    "the stored pairs belong to other forget or retain data",
                    "use another output folder, or set overwrite=true to start again",
                )
        self.anchor: SideName = (
            pairs.anchor
            if self._pairs is not None and pairs is not None
            else ("retain" if forget is None else "forget")
        )
        data = forget if self.anchor == "forget" else retain
        assert data is not None
        self._size = len(data)
        self._epoch = 0
        self._drawn: tuple[int, tuple[int, ...]] = (-1, ())

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0. Call it in each process that reads items: worker processes hold copies."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Encoded]:
        return self.item(index)

    def item(self, index: int, forget: int | None = None) -> dict[str, Encoded]:
        """The examples of an item; `forget` replaces the drawn forget row, and with it the alternate."""
        if not 0 <= index < self._size:
            raise IndexError(index)
        forget = self.forget_row(index) if forget is None else forget
        retain = index if self.anchor == "retain" else self._other(index)
        at = {"forget": forget, "alternate": forget, "retain": retain}
        return {name: examples[at[name]] for name, examples in self._examples.items()}

    def forget_row(self, index: int) -> int:
        """The forget-side position of an item's forget row in this epoch."""
        return index if self.anchor == "forget" else self._other(index)

    def _other(self, index: int) -> int:
        if self._pairs is None:
            return index
        epoch = self.epoch
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._pairs.at(epoch))
        return self._drawn[1][index]


def _sides(
    forget: Dataset | None, retain: Dataset | None, wanted: Collection[str] | None
) -> dict[str, Sequence[Encoded]]:
    """The examples by side, restricted to the wanted sides."""
    there: dict[str, Sequence[Encoded]] = {}
    if forget is not None:
        there["forget"] = forget.encoded
        if forget.alternates is not None:
            there["alternate"] = forget.alternates
    if retain is not None:
        there["retain"] = retain.encoded
    hints = {
        "alternate": "use a forget data set with alternates, such as TOFU_QA_forget_idk "
        "(handler QAwithIdkDataset)",
        "forget": "name a data set under data.forget",
        "retain": "name a data set under data.retain, or choose retain=none",
    }
    missing = [
        Fault(f"the method reads {side} rows, but no data set gives them", hints.get(side, ""))
        for side in wanted or ()
        if side not in there
    ]
    if missing:
        raise UserError.of(missing)
    if not there:
        raise UserError(
            "there is neither forget nor retain data", "name data sets under data.forget or data.retain"
        )
    return {side: examples for side, examples in there.items() if wanted is None or side in wanted}


def check_disjoint(forget: RowSet, retain: RowSet) -> None:
    """Refuse forget and retain sets that share rows: a row cannot be both forgotten and kept.

    Two rows are the same if question and answer are equal. The same question with another answer is another
    row.

    Raises:
        UserError: the sets share rows; the message names them.
    """
    kept = {base_id(row.id): row for row in retain}
    shared = [(row, kept[base_id(row.id)]) for row in forget if base_id(row.id) in kept]
    if not shared:
        return
    listed = [
        f"    {row.id}: row {row.index} of {forget.name}, row {twin.index} of {retain.name}"
        for row, twin in shared[:SHOWN]
    ]
    more = [f"    and {len(shared) - SHOWN} more"] if len(shared) > SHOWN else []
    head = (
        f"forget ({forget.name}) and retain ({retain.name}) share {len(shared)} of {len(forget)} forget rows:"
    )
    hint = (
        "choose splits that belong together, such as forget10 with retain90, forget05 with retain95, "
        "forget01 with retain99"
    )
    raise UserError("\n".join([head, *listed, *more]), hint)
