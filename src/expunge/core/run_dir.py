"""The run directory: one folder, one resolved configuration, every artefact a file."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.fingerprint import code_version

CONFIG_FILE = "config.json"
RECORD_FILE = "run.json"
TRAINED_FILE = "trained.json"
VERSIONS_OF = ("expunge", "torch", "transformers", "accelerate", "tokenizers", "numpy", "peft")


@dataclass
class RunRecord:
    """What a run was and what became of it; `run.json`.

    Attributes:
        mode: finetune, unlearn or eval.
        task_name: the run's name.
        method: handler of the method, None for an evaluation.
        identity: `Config.identity()` of the run.
        status: running, interrupted, failed or complete.
        steps: optimizer steps done.
        seconds: wall-clock of this process, set-up included.
        peak_memory_mb: highest resident memory (device memory on an accelerator) in MiB.
        metrics: aggregates by metric name, as in `<SUITE>_SUMMARY.json`.
        notices: what was translated, or accepted with a remark.
        versions: of the packages the numbers depend on.
    """

    mode: str
    task_name: str
    method: str | None = None
    identity: str = ""
    status: str = "running"
    steps: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    started: str = ""


class RunDir:
    """A run's folder, opened for one configuration.

    Args:
        path: the folder.
        config: what the run computes.
        overwrite: empty a folder that holds a run instead of continuing or refusing it.
        primary: whether this process is the one of several that looks at the folder and writes to it.

    Attributes:
        resumed: whether the folder already held this very run.
        record: written to `run.json` by `save` and `finish`.

    Raises:
        UserError: the folder holds a run of another configuration, or files that no run wrote.
    """

    def __init__(self, path: Path, config: Config, overwrite: bool = False, primary: bool = True) -> None:
        self.path = path
        self.config = config
        self.primary = primary
        self.started = time.monotonic()
        if path.exists() and not path.is_dir():
            raise UserError(f"the output folder {path} is a file", "choose another paths.output_dir or task_name")
        self.resumed = primary and self._claim(overwrite)
        self.record = RunRecord(
            mode=str(config.get("mode")),
            task_name=str(config.get("task_name")),
            method=config.get("trainer.handler") if config.get("mode") != "eval" else None,
            identity=config.identity(),
            notices=list(config.notices),
            versions=versions(),
            code=code_version(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )
        if primary:
            write_json(path / CONFIG_FILE, {"identity": config.identity(), "overrides": config.overrides, "config": dict(config.tree)})
        self.save()

    def _claim(self, overwrite: bool) -> bool:
        """Whether the folder already holds this very run."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return False
        stored = self.path / CONFIG_FILE
        if overwrite:
            _refuse_foreign(self.path, stored)
            shutil.rmtree(self.path)
            return False
        _refuse_foreign(self.path, stored)
        if read_json(stored)["identity"] != self.config.identity():
            raise UserError(
                f"{self.path} holds a run of another configuration ({_difference(read_json(stored)['config'], dict(self.config.tree))})",
                "choose another task_name, or overwrite=true to replace that run",
            )
        return True

    @property
    def trained(self) -> bool:
        """Whether the final model is in the folder: `mark_trained` was the last thing its training wrote."""
        return (self.path / TRAINED_FILE).is_file()

    def mark_trained(self) -> None:
        """Say that the final model is in the folder, whole."""
        if self.primary:
            write_json(self.path / TRAINED_FILE, {"identity": self.config.identity(), "steps": self.record.steps})

    def save(self) -> None:
        """Write the record."""
        self.record.seconds = round(time.monotonic() - self.started, 3)
        if self.primary:
            write_json(self.path / RECORD_FILE, asdict(self.record))

    def finish(self, status: str, **facts: Any) -> None:
        """Set the outcome and whatever facts came with it, and write the record."""
        self.record.status = status
        for name, value in facts.items():
            setattr(self.record, name, value)
        self.save()


def versions() -> dict[str, str]:
    """Installed versions of the packages that the numbers depend on, and Python's."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _refuse_foreign(path: Path, stored: Path) -> None:
    if not stored.is_file():
        raise UserError(
            f"{path} is not empty and holds no run of this tool", "choose another task_name or paths.output_dir; nothing was touched"
        )


def _difference(old: Any, new: Any, prefix: str = "") -> str:
    """The first keys at which two trees differ, for a message."""
    found = list(_differences(old, new, prefix))
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "") if found else "differs"


def _differences(old: Any, new: Any, prefix: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(set(old) | set(new)):
            found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]
