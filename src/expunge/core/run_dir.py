"""The run directory: one folder, one resolved configuration, every artefact a file."""

from __future__ import annotations

import contextlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.fingerprint import code_version
from expunge.core.layout import EXPUNGE, LAYOUTS, RECORD_FILE, STEPS, TRAINED_FILE, layout_of

TELLING = ("mode:", "task_name:", "trainer.handler:", "forget_split:", "model.model_args.pretrained")
"""Keys that distinguish two runs most clearly; a message lists them first."""
ROWS_PER_STEP = "trainer.args.rows_per_step"
SCORES_FILE = "difficulty_scores.json"
"""Scores of the forget rows. They are computed before a run and may be in its folder; no run removes them."""
VERSIONS_OF = ("expunge", "torch", "transformers", "accelerate", "tokenizers", "numpy", "peft")


@dataclass
class RunRecord:
    """The facts and the outcome of a run; `run.json`.

    Attributes:
        mode: finetune, unlearn or eval.
        task_name: the run's name.
        method: handler of the method or procedure; None for an evaluation.
        identity: `Config.identity()` of the run.
        status: running, interrupted, failed or complete.
        steps: optimizer steps done.
        seconds: wall-clock time of this process, with set-up.
        peak_memory_mb: highest resident memory (device memory on an accelerator) in MiB.
        metrics: aggregates by metric name, as in `<SUITE>_SUMMARY.json`.
        notices: remarks on keys that were translated or changed.
        versions: versions of the packages that the numbers depend on.
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
    """The folder of one run. Nothing is changed in it before `begin`, so a faulty run leaves no trace.

    Args:
        path: the folder.
        config: the configuration of the run.
        overwrite: replace a run that is in the folder; the old run is removed when the new one begins.
        primary: whether this process reads and writes the folder; one process of several does.

    Attributes:
        layout: the names of the files, by `run_layout`.
        resumed: whether the folder already holds this run, which is then continued.
        record: written to `run.json` by `save` and `finish` after the run has begun.

    Raises:
        UserError: the folder holds a run of another configuration, or files that no run wrote.
    """

    def __init__(self, path: Path, config: Config, overwrite: bool = False, primary: bool = True) -> None:
        self.path = path
        self.config = config
        self.layout = LAYOUTS[str(config.get("run_layout") or EXPUNGE.name)]
        self.primary = primary
        self.overwrite = overwrite
        self.begun = False
        self.started = time.monotonic()
        self._was_there = path.exists()
        if path.exists() and not path.is_dir():
            hint = "choose another paths.output_dir or task_name"
            raise UserError(f"the output folder {path} is a file", hint)
        self._held_a_run = primary and self._holds_a_run()
        self.resumed = self._held_a_run and not overwrite
        method = config.get("procedure.handler") or config.get("trainer.handler")
        self.record = RunRecord(
            mode=str(config.get("mode")),
            task_name=str(config.get("task_name")),
            method=None if config.get("mode") == "eval" else method,
            identity=config.identity(),
            notices=list(config.notices),
            versions=versions(),
            code=code_version(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )
        if self.trained:
            self.record.steps = read_json(path / TRAINED_FILE)["steps"]

    def _holds_a_run(self) -> bool:
        """Whether the folder holds a run that can be continued or replaced."""
        if not self.path.exists() or all(_is_score(path) for path in self.path.iterdir()):
            return False
        there = layout_of(self.path)
        if there is None:
            raise UserError(
                f"{self.path} is not empty and holds no run of this tool",
                "choose another task_name or paths.output_dir; nothing was changed",
            )
        known = read_json(self.path / there.config)
        if not self.overwrite and there is not self.layout:
            raise UserError(
                f"{self.path} holds a run with other file names"
                f" (run_layout={there.name}; this run has {self.layout.name})",
                f"add run_layout={there.name} to continue it, choose another task_name,"
                " or add overwrite=true to replace it",
            )
        if not self.overwrite and known["identity"] != self.config.identity():
            there_tree = Config(known["config"], ranks=int(known.get("ranks", 1))).identity_tree()
            differences = list(_differences(there_tree, self.config.identity_tree()))
            hint = "choose another task_name, or add overwrite=true to replace that run"
            if [text.partition(":")[0] for text in differences] == [ROWS_PER_STEP]:
                rows = int(there_tree["trainer"]["args"]["rows_per_step"])
                hint = f"{_cuts(rows, self.config.ranks)}; or {hint}"
            raise UserError(f"{self.path} holds a run of another configuration ({_shown(differences)})", hint)
        return True

    def begin(self) -> None:
        """Begin the run: remove the run that it replaces, and write the configuration."""
        self.begun = True
        if self.primary:
            if self._held_a_run and self.overwrite:
                _empty(self.path)
            cfg = self.config
            tree = {
                "identity": cfg.identity(),
                "overrides": cfg.overrides,
                "config": dict(cfg.tree),
                "ranks": cfg.ranks,
            }
            write_json(self.path / self.layout.config, tree)
        self.save()

    @contextlib.contextmanager
    def running(self, made: Callable[[], bool]) -> Iterator[None]:
        """Take the folder for a block that does the run's work; an error in it ends the run.

        Args:
            made: whether the run has made something that another one could continue from.
        """
        try:
            self.begin()
            yield
        except KeyboardInterrupt:
            self.finish("interrupted")
            raise
        except Exception:
            self.abandon(keep=made())
            raise

    def abandon(self, keep: bool) -> None:
        """End a run that a fault stopped.

        Args:
            keep: whether the run has written anything from which it can continue. A new run that has not is
                removed; any other run is marked as failed.
        """
        if not keep and self.begun and self.primary and not self._held_a_run:
            _empty(self.path)
            if not self._was_there and self.path.is_dir():
                self.path.rmdir()
            return
        # If the fault was a full disk, this write fails too and must not hide the fault.
        with contextlib.suppress(UserError):
            self.finish("failed")

    @property
    def model_folder(self) -> Path:
        """The folder of the final model, its tokenizer and the checkpoints."""
        return self.layout.model_folder(self.path)

    def results_folder(self, step: int | None = None) -> Path:
        """The folder of a training run's evaluation: the final one, or the one at a step."""
        return self.layout.results_folder(self.path) if step is None else self.path / STEPS / f"step-{step}"

    @property
    def trained(self) -> bool:
        """Whether the final model is in the folder: `mark_trained` is the last write of training."""
        return (self.path / TRAINED_FILE).is_file() and (self.begun or not self.overwrite)

    def mark_trained(self) -> None:
        """Mark the final model in the folder as complete."""
        if self.primary:
            mark = {"identity": self.config.identity(), "steps": self.record.steps}
            write_json(self.path / TRAINED_FILE, mark)

    def save(self) -> None:
        """Write the record of a run that has begun."""
        self.record.seconds = round(time.monotonic() - self.started, 3)
        if self.primary and self.begun:
            write_json(self.path / RECORD_FILE, asdict(self.record))

    def finish(self, status: str, **facts: Any) -> None:
        """Set the outcome and further facts, and write the record."""
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


def _is_score(path: Path) -> bool:
    """Whether a file belongs to the difficulty scores."""
    return path.name.startswith(SCORES_FILE.partition(".")[0] + ".")


def _empty(folder: Path) -> None:
    """Remove a run's files, the configuration last: a half-emptied folder is still recognised as a run."""
    if (layout := layout_of(folder)) is None:
        return
    paths = [path for path in folder.iterdir() if not _is_score(path)]
    for path in sorted(paths, key=lambda path: path.name == layout.config):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _cuts(rows: int, ranks: int) -> str:
    """How this number of processes can take steps of so many rows, or which numbers of processes can."""
    names = "trainer.args.per_device_train_batch_size x trainer.args.gradient_accumulation_steps"
    if rows % ranks == 0:
        return f"with {ranks} process(es), give {names} = {rows // ranks}"
    able = [str(number) for number in range(1, rows + 1) if rows % number == 0]
    return f"start {', '.join(able[:-1])} or {able[-1]} processes, and give {names} = {rows} / processes"


def _shown(differences: list[str]) -> str:
    """The first keys at which two trees differ, for a message; the keys of `TELLING` come first."""
    found = sorted(differences, key=lambda text: not text.startswith(TELLING))
    more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
    return "; ".join([*found[:3], *more]) or "differs"


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key}: {old!r} there, {new!r} now"
