"""Checks of the `data` section and of every data file in the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.datasets import bind_dataset
from expunge.config.local_data import is_looked_up, local_file, local_folder, local_names
from expunge.core.errors import nearest

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
        text = check.typed("data.anchor", anchor)
        check.fault(f"{text}: not a side of the data", f"known: {', '.join(ANCHORS)}")
    for name, node in check.cfg.section("collator").items():
        args = node.get("args") if isinstance(node, dict) else None
        side = args.get("padding_side", "right") if isinstance(args, dict) else "right"
        if side != "right":
            text = check.typed(f"collator.{name}.args.padding_side", side)
            check.fault(
                f"{text}: training pads on the right", "leave the key out; generation always pads on the left"
            )


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
    if path is None or not is_looked_up(hf_args) or local_file(hf_args, root) is not None:
        return
    folder = local_folder(str(path), root)
    if folder is None:
        if str(path).startswith((".", "/", "~")):
            check.fault(
                f"{check.typed(f'{key}.path', path)}: no such file or folder",
                f"looked for {Path(str(path)).expanduser().resolve()}",
            )
        return
    if name is None:
        return
    text = _split_as_typed(check, key, str(name))
    # A misspelt split is reported once, even if several views use it.
    if any(fault.message.startswith(f"{text}: unknown split") for fault in check.faults):
        return
    names = local_names(folder)
    near = nearest(str(name), names, count=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    check.fault(f"{text}: unknown split {name!r} of {path}", f"{hint}{folder} has: {', '.join(names)}")


def _split_as_typed(check: Checking, key: str, name: str) -> str:
    direct = check.typed(f"{key}.name")
    if "=" in direct:
        return direct
    for split in ("forget_split", "retain_split", "holdout_split"):
        value = check.cfg.get(split)
        if value is not None and name in (value, f"{value}_perturbed"):
            return check.typed(split, value)
    return f"{key}.name={name}"


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
            hint = (
                f"looked for {Path(value).expanduser().resolve()}; EXPUNGE_DATA sets the folder of local data"
            )
            check.fault(f"{check.typed(f'{key}.args.{name}', value)}: no such file", hint)
