"""The retain model's evaluation file, ours or open-unlearning's, compared with the rows of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import UserError
from expunge.core.files import read_json
from expunge.core.fingerprint import fingerprint_files
from expunge.core.layout import result_files
from expunge.evaluation.tables import Floats

ABOUT = "_about"
"""Key of an evaluation file for everything that is not a metric."""


@dataclass(frozen=True)
class RetainLogs:
    """A `<SUITE>_EVAL.json`.

    Attributes:
        path: the file.
        data: its content.
        split: forget split of this run.
        template: fingerprint of this run's template.
    """

    path: Path
    data: Mapping[str, Any]
    split: str | None = None
    template: str | None = None

    @classmethod
    def read(
        cls, path: str | Path, suite: str, *, split: str | None = None, template: str | None = None
    ) -> RetainLogs:
        """Read a file, or the suite's file in a run's folder; check that split and template are this run's.

        Raises:
            UserError: no file, not JSON, no evaluation, or an evaluation of another split or template.
        """
        given, path = path, Path(path).expanduser()
        if path.is_dir():
            files = [whole for whole, _ in result_files(path, suite)]
            path = next((file for file in files if file.is_file()), files[0])
        if not path.is_file():
            hint = f"evaluate the retain model first and give its {suite.upper()}_EVAL.json"
            raise UserError(f"retain_logs_path={given}: no such file", f"looked for {path.resolve()}; {hint}")
        data = read_json(path)
        if not isinstance(data, dict) or not any(
            isinstance(node, dict) and "agg_value" in node for node in data.values()
        ):
            raise UserError(
                f"retain_logs_path={given}: {path} has no metric",
                f"give the retain model's {suite.upper()}_EVAL.json",
            )
        logs = cls(path, data, split, template)
        logs._check_about()
        _ = logs.fingerprint
        return logs

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file at the time it was read."""
        return fingerprint_files([self.path])

    def has(self, metric: str) -> bool:
        """Whether the file has a value for each row of a metric."""
        node = self.data.get(metric)
        return isinstance(node, dict) and (bool(node.get("value_by_index")) or "forget" in node)

    def aggregate(self, metric: str) -> float | None:
        """A metric's aggregate; None if the file has none."""
        node = self.data.get(metric)
        value = node.get("agg_value") if isinstance(node, dict) else None
        return None if value is None else float(value)

    def column(self, metric: str, key: str, row_ids: Sequence[str], side: str | None = None) -> Floats:
        """One value per row, [R], NaN for null, in the order of this run's rows.

        Args:
            metric: name of a metric in the file.
            key: `score`, `prob`, ...
            row_ids: of this run.
            side: `forget` or `holdout` of an attack.
        """
        values = self.check(metric, row_ids, side)
        try:
            column = [values[index][key] for index in range(len(row_ids))]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: {metric} lacks {key!r} for some rows", "evaluate the retain model again"
            ) from error
        return np.array([np.nan if value is None else float(value) for value in column])

    def check(self, metric: str, row_ids: Sequence[str], side: str | None = None) -> dict[int, Any]:
        """The values by row position, after a comparison of the file's rows with this run's.

        Raises:
            UserError: another number of rows, or other ids.
        """
        node = self.data[metric] if side is None else self.data[metric].get(side, {})
        values = {int(index): value for index, value in node.get("value_by_index", {}).items()}
        where = f"{metric}.{side}" if side else metric
        if sorted(values) != list(range(len(row_ids))):
            raise UserError(
                f"retain_logs_path={self.path}: {where} has {len(values)} rows, this run has {len(row_ids)}",
                self._advice("another split"),
            )
        known = self.data.get(ABOUT, {}).get("row_ids", {}).get(where)
        if known is not None and list(known) != list(row_ids):
            different = sum(old != new for old, new in zip(known, row_ids, strict=False))
            message = f"{different} of {len(row_ids)} rows of {where} are not this run's"
            raise UserError(f"retain_logs_path={self.path}: {message}", self._advice("other rows"))
        return values

    def check_texts(self, metric: str, texts: Sequence[str]) -> None:
        """Compare the answers in ROUGE's rows with this run's: files of open-unlearning have no row ids."""
        node = self.data.get(metric) or {}
        rows = {int(index): row.get("ground_truth") for index, row in node.get("value_by_index", {}).items()}
        known = {index: text for index, text in rows.items() if text is not None and index < len(texts)}
        pairs = [(text, texts[index]) for index, text in known.items()]
        different = sum(_spaced(one) != _spaced(other) for one, other in pairs)
        # A text decoded from tokens may differ from the row's by a blank; in another split nearly all texts
        # differ.
        if 2 * different > len(pairs):
            message = f"{different} of {len(pairs)} answers of {metric} are not this run's"
            raise UserError(f"retain_logs_path={self.path}: {message}", self._advice("other rows"))

    def _check_about(self) -> None:
        about = self.data.get(ABOUT, {})
        split, template = about.get("forget_split"), about.get("template")
        if split is not None and self.split is not None and split != self.split:
            raise UserError(
                f"retain_logs_path={self.path} is of {split}, this run is of {self.split}",
                self._advice("another split"),
            )
        if template is not None and self.template is not None and template != self.template:
            raise UserError(
                f"retain_logs_path={self.path} was made with another template or tokenizer than this run's",
                self._advice("another template"),
            )

    def _advice(self, what: str) -> str:
        split = self.split or "this split"
        return (
            f"these logs are of {what}: evaluate the retain model on {split} with this run's template, and"
            " give that file"
        )


def _spaced(text: str) -> str:
    return " ".join(text.split())
