"""Refusals as alternate answers: a given file, else known files under the data root, else built-in lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from expunge.core.errors import UserError
from expunge.data.formats import read_lines
from expunge.data.rows import RowSet

log = logging.getLogger(__name__)

IDK_FILE = "idontknow.jsonl"
"""File of refusals beside a data set, one per line. It may be plain text despite its suffix."""
FOLDER, POLITE = "refusals", "polite_refusal_responses"
SUFFIXES = (".csv", ".json", ".jsonl", ".txt")
OWN = (
    "I don't know the answer to that.",
    "I'm sorry, I can't help with this question.",
    "That is not something I have knowledge of.",
    "I'm afraid I have no answer to give here.",
    "I can't say anything reliable about that.",
    "This is outside of what I know.",
    "I'd rather not answer this one.",
    "Sorry, I have no information about that.",
    "I'm not able to tell you more on this subject.",
    "That question is one I can't answer.",
    "I have never learned about this.",
    "Let's talk about something else: this I don't know.",
)
"""The refusals that are used if there is no file of refusals."""


def refusal_lines(idk_path: str | None, rows: RowSet, data_root: Path | None) -> list[str]:
    """The refusals of a run.

    Args:
        idk_path: a file, absolute or relative to the working directory or the data root. It contains plain
            text, one CSV column, or JSON strings. None = the first existing file of `idontknow.jsonl` beside
            the file of the rows, `DATA_ROOT/tofu/idontknow.jsonl`, and
            `DATA_ROOT/refusals/polite_refusal_responses.{csv,json,jsonl,txt}`. If none exists, the built-in
            lines are used, with a warning that lists the places searched.
        rows: the rows to refuse.
        data_root: folder of local data sets.

    Raises:
        UserError: the given file does not exist (the message lists the places searched) or has no refusal.
    """
    looked = list(_given(idk_path, data_root) if idk_path is not None else _known(rows, data_root))
    found = next((place for place in looked if place.is_file()), None)
    if found is None:
        where = (
            ", ".join(str(place.absolute()) for place in dict.fromkeys(looked))
            or "no file: the rows are not local and no data root is set"
        )
        if idk_path is not None:
            raise UserError(
                f"no file of refusals for {rows.name!r}: idk_path is {idk_path!r}; looked for {where}",
                "set idk_path to a text file with one refusal per line",
            )
        text = "no file of refusals for %r: looked for %s; using the %d built-in lines"
        log.warning(text, rows.name, where, len(OWN))
        return list(OWN)
    lines = [line for line in read_lines(found) if line]
    if not lines:
        raise UserError(f"{found} contains no refusal", "give a text file with one refusal per line")
    log.info("refusals for %s: %d lines from %s", rows.name, len(lines), found)
    return lines


def _given(idk_path: str, data_root: Path | None) -> Iterator[Path]:
    for root in (Path(), data_root):
        if root is not None:
            yield root / Path(idk_path).expanduser()


def _known(rows: RowSet, data_root: Path | None) -> Iterator[Path]:
    if rows.file is not None:
        yield rows.file.parent / IDK_FILE
    if data_root is not None:
        yield data_root / "tofu" / IDK_FILE
        yield from (data_root / FOLDER / f"{POLITE}{suffix}" for suffix in SUFFIXES)
