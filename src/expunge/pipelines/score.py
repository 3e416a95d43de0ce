"""`expunge score`: how hard it is to make the start model forget each row."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from expunge.config.checks.difficulty import KEY
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.fingerprint import fingerprint
from expunge.core.run_dir import SCORES_FILE
from expunge.data.datasets import Dataset
from expunge.data.select import KEYS as SELECT_KEYS
from expunge.data.select import Selection, chosen_rows
from expunge.influence.row_scores import Difficulty, score_rows
from expunge.influence.score_file import sha256_of, write_scores
from expunge.lm import runtime
from expunge.models.adapter_folder import WEIGHTS_FILES
from expunge.models.fingerprint import model_fingerprint
from expunge.models.load import adapter_folder_of, load_model
from expunge.pipelines.assemble import data_root, dataset_of, log_notices, text_of

log = logging.getLogger(__name__)

DTYPE = "float32"
"""Scores are computed in this dtype, whatever dtype a run trains in."""


def run(cfg: Config) -> Path:
    """Score the rows of `data.forget` with `model`, and write the scores to `scores_path`.

    Returns:
        The file of scores.

    Raises:
        UserError: the file exists, there are several processes, or another fault that the user can correct.
    """
    path = scores_path(cfg)
    _check_place(path, bool(cfg.get("overwrite")), cfg.ranks)
    notices = list(cfg.notices)
    text = text_of(cfg, notices)
    forget = dataset_of(cfg, "forget", text)
    if forget is None:
        message = "data.forget names no data set, so there is nothing to score"
        raise UserError(message, "add one, such as TOFU_QA_forget")
    asked = cfg.bound[KEY].kwargs if KEY in cfg.bound else {}
    model = _model(cfg, str(asked.get("params", "auto")), notices)
    facts = model_facts(cfg)
    log_notices(notices, already=cfg.notices)
    found = score_rows(model, forget.encoded, **asked)
    log_notices(found.notices)
    write_scores(
        path,
        found,
        forget.encoded,
        model=facts,
        dataset=dataset_facts(cfg, forget),
        seed=int(cfg.get("seed", 0)),
        save_gradient=bool(cfg.get("difficulty.save_gradient", True)),
    )
    _report(path, found)
    return path


def scores_path(cfg: Config) -> Path:
    """The file of scores: `difficulty.path`, else a file in the run folder."""
    given = cfg.get("difficulty.path")
    return Path(str(given or Path(cfg.get("paths.output_dir")) / SCORES_FILE)).expanduser()


def model_facts(cfg: Config) -> dict[str, Any]:
    """Which model was scored: name, sha256 of the adapter's weights, dtype, fingerprint of the files."""
    args = cfg.section("model.model_args")
    name, given = str(args.get("pretrained_model_name_or_path")), cfg.get("model.adapter.path")
    folder = adapter_folder_of(args) or (Path(str(given)).expanduser() if given else None)
    files = [] if folder is None else [folder / file for file in WEIGHTS_FILES]
    sha256 = next((sha256_of(file) for file in files if file.is_file()), None)
    of_files = model_fingerprint(name, args.get("revision"))
    identity = of_files if given is None else fingerprint({"base": of_files, "adapter": sha256})
    return {"name": name, "adapter_sha256": sha256, "dtype": DTYPE, "fingerprint": identity}


def dataset_facts(cfg: Config, forget: Dataset) -> dict[str, Any]:
    """Which rows were scored; a value is null if it is unknown or if there are several forget data sets."""
    specs = cfg.section("data.forget")
    args = (next(iter(specs.values())).get("args") or {}) if len(specs) == 1 else {}
    hf_args, select = args.get("hf_args") or {}, args.get("select")
    chosen = dict(zip(SELECT_KEYS, (None, None, None), strict=True)) | dict(select or {})
    total: int | None = len(forget) if select is None and len(specs) == 1 else None
    if select is not None and hf_args:
        size = len(chosen_rows(hf_args, data_root(cfg), (), None, args.get("reshape")))
        # A corpus that is cut into pieces does not have the rows of its source.
        total = size if len(Selection.of(select).positions(size)) == len(forget) else None
    return {
        "name": "+".join(specs),
        "subset": hf_args.get("name"),
        "split": hf_args.get("split"),
        "n_total": total,
        "dataset_seed": chosen["seed"],
        "forget_ratio": chosen["ratio"],
    }


def _check_place(path: Path, overwrite: bool, ranks: int) -> None:
    """Check, before anything is loaded, that the file of scores can be written at the end."""
    if ranks > 1:
        message = f"`expunge score` was started in {ranks} processes, but it uses one"
        raise UserError(message, "start it without a launcher")
    other = "name another file with difficulty.path"
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already", f"{other}, or add overwrite=true")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{path} cannot be written: no permission to write in {there}", other)


def _model(cfg: Config, params: str, notices: list[str]) -> Any:
    """The start model in float32, with its trained adapter, or a new one if `params` asks for its weights."""
    args = cfg.section("model.model_args")
    for key in ("dtype", "master_dtype", "torch_dtype"):
        args.pop(key, None)
    adapter = cfg.section("model.adapter")
    fresh = (
        str(adapter.get("type") or "none") != "none"
        and adapter.get("path") is None
        and adapter_folder_of(args) is None
    )
    make = fresh and params not in ("auto", "all")
    if fresh and not make:
        notices.append("model.adapter is new and not trained: rows are scored with the base model's weights")
    seed = int(cfg.get("seed", 0))
    loaded = load_model(
        {**args, "torch_dtype": DTYPE}, adapter, for_training=make, seed=seed, notices=notices
    )
    model: Any = loaded.model
    if runtime.device().type == "mps":
        # Dot products are accumulated in float64.
        notices.append("rows are scored on the CPU: this accelerator has no float64")
        return model.to("cpu")
    return model.to(runtime.device()) if make and not getattr(model, "is_quantized", False) else model


def _report(path: Path, found: Difficulty) -> None:
    scores = sorted(item.score for item in found.items)
    weights = sum(tensor.numel() for tensor in found.gradient.values())
    scorer = f"{found.scorer['algorithm']} over {weights} weights ({found.scorer['params']})"
    low, median, high = scores[0], scores[len(scores) // 2], scores[-1]
    log.info(
        f"{len(scores)} rows scored with {scorer}: lowest {low:.4g}, median {median:.4g}, highest {high:.4g};"
        f" norm of the forget set's gradient: {found.norm:.4g}"
    )
    log.info(
        "to first order, HIGH scores mean forgotten first; difficulty.order=score_desc starts with these rows"
    )
    log.info("scores: %s", path)
