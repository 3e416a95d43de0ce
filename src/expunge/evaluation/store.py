"""Tables on disk, under a fingerprint of everything that they depend on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from expunge.core.errors import UserError
from expunge.core.files import atomic_write, read_json, write_json
from expunge.evaluation.tables import TABLES, Examples, GenerationTable, Table

log = logging.getLogger(__name__)


class TableStore:
    """A folder of tables: `KEY.safetensors` with the arrays, `KEY.json` with the texts, written last.

    Args:
        folder: where; None = nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str, kind: str) -> Table | None:
        """The table under a key; None where there is none, or a damaged one."""
        if self.folder is None or not self._texts(key).is_file():
            return None
        try:
            texts = read_json(self._texts(key))
            arrays = load_file(self._arrays(key))
            return _table(kind, texts, arrays)
        except (UserError, SafetensorError, OSError, KeyError, TypeError) as error:
            log.warning("the table %s is damaged and is made anew: %s", self._texts(key), error)
            return None

    def save(self, key: str, table: Table) -> None:
        """Keep a table under a key."""
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
            "kind": table.KIND,
            "row_ids": examples.row_ids,
            "target_text": examples.target_text,
        }
        if isinstance(table, GenerationTable):
            texts |= {"prompt": table.prompt, "generation": table.generation}
        atomic_write(self._arrays(key), lambda path: save_file(arrays, path))
        write_json(self._texts(key), texts, indent=None)

    def _arrays(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _texts(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"


def _table(kind: str, texts: dict[str, Any], arrays: dict[str, Any]) -> Table:
    examples = Examples(
        tuple(texts["row_ids"]), arrays["row_B"], arrays["answer_B"], tuple(texts["target_text"])
    )
    if kind == GenerationTable.KIND:
        return GenerationTable(examples, tuple(texts["prompt"]), tuple(texts["generation"]))
    made = TABLES[kind]
    return made(examples, **{name: arrays[name] for name in made.ARRAYS})
