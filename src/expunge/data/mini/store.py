"""The embedded benchmark on disk: written once under the cache folder, completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from expunge.core import files
from expunge.core.errors import UserError
from expunge.core.fingerprint import LENGTH
from expunge.data.mini import generate, words
from expunge.data.mini.train_tokenizer import train_tokenizer

SEED = 0


def cache_root() -> Path:
    """The cache folder: `$EXPUNGE_CACHE`, else `expunge` in the user's cache folder."""
    return Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge").expanduser()


def benchmark_folder() -> Path:
    """The folder with the JSON Lines files of the benchmark; created if it does not exist."""
    return _once("data", _write_rows)


def model_folder() -> Path:
    """The folder with the untrained model (config, safetensors) and tokenizer; created if it is not there."""
    return _once("model", _write_model)


def _once(part: str, write: Callable[[Path], None]) -> Path:
    """Fill a temporary folder, then rename it; if another process was faster, use its folder."""
    folder = cache_root() / f"mini-{_version()}" / part
    if files.is_complete(folder):
        return folder
    with files.reporting_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{part}."))
        try:
            write(draft)
            files.mark_complete(draft)
            draft.chmod(0o755)
            try:
                draft.rename(folder)
            except OSError as error:
                if folder.is_dir() and not files.is_complete(folder):
                    raise UserError(
                        f"{folder} exists but is not complete",
                        "remove that folder; the next run creates it again",
                    ) from error
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_rows(folder: Path) -> None:
    for stem, rows in generate.build_files(SEED).items():
        (folder / f"{stem}.json").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    (folder / "idontknow.jsonl").write_text("\n".join(words.REFUSALS) + "\n", encoding="utf-8")


def _write_model(folder: Path) -> None:
    from expunge.data.mini.model import build_model

    tokenizer = train_tokenizer(generate.build_files(SEED))
    tokenizer.save_pretrained(folder)
    build_model(tokenizer, SEED).save_pretrained(folder)


@cache
def _version() -> str:
    """Hash of this code and of the packages it uses; a change of either gives a new folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("tokenizers", "torch", "transformers"):
        digest.update(f"{package}=={version(package)}\0".encode())
    return digest.hexdigest()[:LENGTH]
