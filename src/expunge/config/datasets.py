"""The datasets of a run in the configuration, `data.SIDE.NAME = {handler, args}`, and their checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.local_data import BUILDERS, EMBEDDED, SUFFIXES, local_file, local_folder
from expunge.config.short_names import DATASETS
from expunge.core.binding import Binder, Bound
from expunge.core.config import value_at
from expunge.core.errors import did_you_mean

ANCHORS = ("forget", "retain")


def check_data(check: Checking) -> None:
    """Check sides, handlers and their arguments, splits, files, and right padding for training."""
    mode = check.cfg.get("mode")
    data = check.cfg.section("data")
    if mode == "finetune" and not data.get("train"):
        check.fault("data.train is empty", "choose a dataset: data/datasets@data.train=NAME")
    for side, sets in data.items():
        for name, node in sets.items() if isinstance(sets, dict) else ():
            _dataset(check, f"data.{side}.{name}", node)
    anchor = data.get("anchor")
    if mode == "unlearn" and anchor not in ANCHORS:
        check.refuse("data.anchor", anchor, "not a side of the data", f"known: {', '.join(ANCHORS)}")
    for name, node in check.cfg.section("collator").items():
        side = value_at(node, "args.padding_side", "right")
        if side != "right":
            hint = "leave the key out; generation always pads on the left"
            check.refuse(f"collator.{name}.args.padding_side", side, "training pads on the right", hint)


def datasets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping below `key` with a handler: (dotted key, mapping)."""
    if not isinstance(node, dict):
        return
    if "handler" in node:
        yield key, node
        return
    for name, child in node.items():
        yield from datasets(child, f"{key}.{name}")


def check_split(check: Checking, key: str, hf_args: Mapping[str, Any]) -> None:
    """Check that the split of `{path, name}` exists if the dataset is local; the hub is not asked."""
    path, name = hf_args.get("path"), hf_args.get("name")
    root = str(check.cfg.get("paths.data_root"))
    if path in (None, EMBEDDED, *BUILDERS) or local_file(hf_args, root) is not None:
        return
    folder = local_folder(str(path), root)
    if folder is None:
        if str(path).startswith((".", "/", "~")):
            hint = f"looked for {Path(str(path)).expanduser().resolve()}"
            check.refuse(f"{key}.path", path, "no such file or folder", hint)
        return
    if name is None:
        return
    text = _split_as_typed(check, key, str(name))
    # A misspelt split is reported once, even if several views use it.
    if any(fault.message.startswith(f"{text}: unknown split") for fault in check.faults):
        return
    names = sorted({file.stem for file in folder.iterdir() if file.suffix in SUFFIXES})
    hint = did_you_mean(str(name), names, f"{folder} has: {', '.join(names)}")
    check.fault(f"{text}: unknown split {name!r} of {path}", hint)


def _split_as_typed(check: Checking, key: str, name: str) -> str:
    direct = check.typed(f"{key}.name")
    if "=" in direct:
        return direct
    for split in ("forget_split", "retain_split", "holdout_split"):
        value = check.cfg.get(split)
        if value is not None and name in (value, f"{value}_perturbed"):
            return check.typed(split, value)
    return f"{key}.name={name}"


def bind_dataset(binder: Binder, key: str, node: Any) -> Bound | None:
    """Bind a dataset and store it in the binder's `bound` at `KEY.args`.

    Returns:
        The bound function; None if there is a fault, which is recorded.
    """
    if not isinstance(node, Mapping):
        binder.refuse(key, node, "a dataset is a section with a handler", f"write {key}.handler=HANDLER")
        return None
    signature = binder.find(f"{key}.handler", node.get("handler"), DATASETS, "data handler", places=1)
    if signature is None:
        return None
    args = node.get("args") or {}
    if not isinstance(args, Mapping):
        hint = f"write {key}.args.NAME=VALUE"
        binder.refuse(f"{key}.args", args, "this is a section, not a value", hint)
        return None
    # The first positional parameter is the context; the run passes it.
    return binder.bind(f"{key}.args", signature, args)


def _dataset(check: Checking, key: str, node: Any) -> None:
    bind_dataset(check, key, node)
    args = node.get("args") if isinstance(node, Mapping) else None
    args = args if isinstance(args, Mapping) else {}
    hf_args = args.get("hf_args")
    hf_args = hf_args if isinstance(hf_args, Mapping) else {}
    if "name" in hf_args and hf_args["name"] is None:
        side = key.split(".")[1]
        option = f"{side}_split" if side in ("forget", "retain") else f"{key}.args.hf_args.name"
        check.fault(
            f"{option} is not given",
            f"add {option}=NAME; it is derived from forget_split only for TOFU's names, forgetNN",
        )
    else:
        check_split(check, f"{key}.args.hf_args", hf_args)
    for name in ("idk_path", "alternate_path"):
        value = args.get(name)
        if isinstance(value, str) and not Path(value).expanduser().is_file():
            looked = f"looked for {Path(value).expanduser().resolve()}"
            hint = f"{looked}; EXPUNGE_DATA sets the folder of local data"
            check.refuse(f"{key}.args.{name}", value, "no such file", hint)
