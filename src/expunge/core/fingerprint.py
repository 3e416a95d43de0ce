"""Fingerprints: short hashes of everything that a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import expunge
from expunge.core.files import without_nan

LENGTH = 16


def fingerprint(value: Any) -> str:
    """Hash of a JSON-like value: 16 hex digits; the order of keys does not matter."""
    canonical = json.dumps(
        without_nan(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:LENGTH]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Hash over the names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:LENGTH]


@cache
def code_version() -> str:
    """Version of the package plus a hash of its source, so that edited code never uses old cached results."""
    root = Path(expunge.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return f"{expunge.__version__}+{digest.hexdigest()[:LENGTH]}"
