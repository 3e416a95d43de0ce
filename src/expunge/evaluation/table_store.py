"""Tables on disk, by a fingerprint of everything that they depend on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from expunge.core.errors import UserError
from expunge.core.files import atomic_write, read_json, write_json
from expunge.evaluation.tables import Examples, Table

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Table)


class TableStore:
    """A folder of tables: `KEY.safetensors` with the arrays, `KEY.json` with the texts, written last.

    Without a folder, nothing is saved.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str, table: type[T]) -> T | None:
        """The table of a type under a key; None if there is none or if it is damaged."""
        if self.folder is None or not self._texts(key).is_file():
            return None
        try:
            texts = read_json(self._texts(key))
            arrays = load_file(self._arrays(key))
            return _table(table, texts, arrays)
        except (UserError, SafetensorError, OSError, KeyError, TypeError) as error:
            log.warning("the table %s is damaged and will be made again: %s", self._texts(key), error)
            return None

    def save(self, key: str, kind: str, table: Table) -> None:
        """Save a table under a key; `kind` names its collector."""
        if self.folder is None:
            return
        examples = table.examples
        arrays = {
            "row_B": examples.row_B,
            "answer_B": examples.answer_B,
            **{name: getattr(table, name) for name in table.ARRAYS},
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        texts: dict[str, Any] = {
            "kind": kind,
            "row_ids": examples.row_ids,
            "target_text": examples.target_text,
            **{name: getattr(table, name) for name in table.TEXTS},
        }
        atomic_write(self._arrays(key), lambda path: save_file(arrays, path))
        write_json(self._texts(key), texts, indent=None)

    def _arrays(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _texts(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"


def _table(made: type[T], texts: dict[str, Any], arrays: dict[str, Any]) -> T:
    examples = Examples(
        tuple(texts["row_ids"]), arrays["row_B"], arrays["answer_B"], tuple(texts["target_text"])
    )
    fields: dict[str, Any] = {name: arrays[name] for name in made.ARRAYS}
    fields |= {name: tuple(texts[name]) for name in made.TEXTS}
    return made(examples, **fields)
