"""The file of difficulty scores: written completely or not at all, and refused if it belongs to other rows.

`NAME.json` contains everything. Or `NAME.jsonl` contains one item per line, and `NAME.meta.json` the rest.
The gradient g is in `NAME.gradient.safetensors` beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from expunge.core.errors import UserError
from expunge.core.files import atomic_write, read_json, without_nan, write_json, write_text
from expunge.core.fingerprint import fingerprint
from expunge.data.encoded import Encoded
from expunge.data.rows import SHOWN
from expunge.influence.row_scores import Difficulty, Item

SCHEMA = "expunge.difficulty/1"
MAKE = "create it again: run the same command line with `expunge score ...` instead of `expunge unlearn ...`"
OPTIONAL = ("grad_norm", "cosine")


@dataclass(frozen=True)
class ScoreFile:
    """The content of a file of scores.

    Attributes:
        path: the file.
        sha256: SHA-256 of its content.
        by_uid: score by row id.
        items: one mapping per row, as written.
        model: name, adapter_sha256, dtype, attention, fingerprint.
        dataset: name, subset, split, n_total, n_scored, dataset_seed, forget_ratio, fingerprint.
        scorer: loss, reduction, epoch_grad_mode, params, algorithm, signed, seed.
        epoch_grad: norm, path, sha256, n_params.
    """

    path: Path
    sha256: str
    by_uid: Mapping[str, float]
    items: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    scorer: Mapping[str, Any]
    epoch_grad: Mapping[str, Any]

    def check_rows(self, encoded: Sequence[Encoded]) -> None:
        """Refuse scores that do not belong to this forget set.

        Raises:
            UserError: rows have no score, scores have no row, or the same rows have other tokens (another
                template or tokenizer).
        """
        here = {row.row_id for row in encoded}
        lacking, foreign = sorted(here - set(self.by_uid)), sorted(set(self.by_uid) - here)
        if lacking or foreign:
            faulty = {
                "of the forget rows have no score": lacking,
                "of its rows are not in the forget set": foreign,
            }
            parts = [
                f"{len(rows)} {what}, such as {', '.join(rows[:SHOWN])}"
                for what, rows in faulty.items()
                if rows
            ]
            raise UserError(
                f"{self.path} belongs to another forget set: {'; '.join(parts)}",
                f"use the forget set of the file, or {MAKE}",
            )
        if self.dataset.get("fingerprint") != rows_fingerprint(encoded):
            message = (
                f"{self.path} was made for the same rows but with other tokens: the tokenizer, template, "
                "max_length or kind of answer differs"
            )
            raise UserError(message, f"use the model and data settings of the file, or {MAKE}")


def rows_fingerprint(encoded: Sequence[Encoded]) -> str:
    """Hash of the ids, tokens and labels of the rows; it does not depend on their order."""
    rows = (
        [
            row.row_id,
            list(row.input_ids),
            list(row.targets or ()),
            [int(counted) for counted in row.label_mask],
        ]
        for row in encoded
    )
    return fingerprint(sorted(rows))


def write_scores(
    path: Path,
    difficulty: Difficulty,
    encoded: Sequence[Encoded],
    *,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    seed: int,
    save_gradient: bool = True,
) -> Path:
    """Write scores and, beside them, g by parameter name (4 bytes per parameter).

    Args:
        path: `.json`, or `.jsonl` for one item per line and a `.meta.json` beside it.
        difficulty: the result of `score_rows`.
        encoded: the scored rows.
        model: name, adapter_sha256, dtype, fingerprint.
        dataset: name, subset, split, n_total, dataset_seed, forget_ratio.
        seed: seed of the run.
        save_gradient: whether g is written.

    Raises:
        UserError: the suffix is unknown, the disk is full, or the folder is not writable.
    """
    check_suffix(path)
    kept = gradient_path(path) if save_gradient else None
    if kept is not None:
        tensors = {
            name: tensor.detach().to("cpu").contiguous() for name, tensor in difficulty.gradient.items()
        }
        atomic_write(kept, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    head = {
        "schema": SCHEMA,
        "model": {**model, "attention": difficulty.attention},
        "dataset": {**dataset, "n_scored": len(encoded), "fingerprint": rows_fingerprint(encoded)},
        "scorer": {**difficulty.scorer, "seed": seed},
        "epoch_grad": {
            "norm": difficulty.norm,
            "path": None if kept is None else kept.name,
            "sha256": None if kept is None else sha256_of(kept),
            "n_params": sum(tensor.numel() for tensor in difficulty.gradient.values()),
        },
    }
    items = [_written(item) for item in difficulty.items]
    if path.suffix == ".json":
        write_json(path, {**head, "items": items})
    else:
        write_json(meta_path(path), head)
        write_text(path, "".join(json.dumps(without_nan(item), ensure_ascii=False) + "\n" for item in items))
    return path


def read_scores(path: Path) -> ScoreFile:
    """Read what `write_scores` wrote.

    Raises:
        UserError: the file does not exist, is not a file of scores, or is damaged.
    """
    check_suffix(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"difficulty.path={path}: {error.strerror or error}", f"looked for {path.resolve()}; {MAKE}"
        ) from error
    try:
        if path.suffix == ".json":
            head = read_json(path)
            items = head["items"]
        else:
            head = read_json(meta_path(path))
            items = [json.loads(line) for line in content.decode().splitlines()]
        if head["schema"] != SCHEMA:
            raise UserError(
                f"{path} has the schema {head['schema']!r}, but this version reads {SCHEMA!r}", MAKE
            )
        by_uid = {str(item["uid"]): float(item["score"]) for item in items}
        sections = {name: dict(head[name]) for name in ("model", "dataset", "scorer", "epoch_grad")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of difficulty scores: {error!r}", MAKE) from error
    if (
        len(by_uid) != len(items)
        or len(items) != sections["dataset"].get("n_scored")
        or not all(map(math.isfinite, by_uid.values()))
    ):
        raise UserError(f"{path} is damaged: its {len(items)} items do not match its own counts", MAKE)
    return ScoreFile(path, hashlib.sha256(content).hexdigest(), by_uid, items, **sections)


def gradient_path(path: Path) -> Path:
    """The path of g for a file of scores."""
    return path.with_name(f"{path.stem}.gradient.safetensors")


def meta_path(path: Path) -> Path:
    """The path of the `.meta.json` file for a file with one item per line."""
    return path.with_name(f"{path.stem}.meta.json")


def check_suffix(path: Path) -> None:
    """Refuse a file that is neither `.json` nor `.jsonl`, with a `UserError`."""
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(
            f"difficulty.path={path}: scores must be a .json or a .jsonl file", f"name it {path.name}.json"
        )


def sha256_of(path: Path) -> str:
    """The full SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _written(item: Item) -> dict[str, Any]:
    """An item as a mapping, without the optional values that its algorithm does not compute."""
    return {key: value for key, value in asdict(item).items() if value is not None or key not in OPTIONAL}
