"""Translate the dataset names of the SOUL family to our datasets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.config.local_data import is_local_path, local_file
from expunge.core.errors import UserError, unknown
from expunge.core.sides import SideName
from expunge.soul.peek import columns

DOMAINS = {"WMDPCyber": ("cyber",), "WMDPBio": ("bio",), "WMDPChem": ("chem",), "WMDPALL": ("bio", "cyber")}
PLAIN = ("SafePku", "C4", "wikitext", "BookCorpus")
TEXTS = ("C4", "wikitext", "BookCorpus")
TOFU = tuple(
    f"Tofu_{name}"
    for name in [
        "full",
        "forget01",
        "forget05",
        "forget10",
        "retain99",
        "retain95",
        "retain90",
        "real_authors",
        "world_facts",
    ]
)
NAMES = (*TOFU, *DOMAINS, "HP", *PLAIN)
NOTHING = ("none", "null", "")
QUESTION_KEYS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("query", "answer"),
)


@dataclass
class Routed:
    """The translation of a name for one side of the data.

    Attributes:
        choices: choices of the group `data/datasets`; several are concatenated.
        values: keys below `data.SIDE.CHOICE` -> value, for the first choice.
        root: keys at the top of the configuration -> value.
        texts: whether the rows are texts without question and answer.
        subset: TOFU's subset; None for other data.
        notices: remarks for the user.
    """

    choices: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    root: dict[str, Any] = field(default_factory=dict)
    texts: bool = False
    subset: str | None = None
    notices: list[str] = field(default_factory=list)


def route(
    name: str, side: SideName, data_root: str = "data", custom_split_path: str | None = None
) -> Routed | None:
    """Translate a dataset name; None for `none`.

    Args:
        name: one of `NAMES`, `Tofu_<subset>`, a local file, or a folder of `datasets.save_to_disk`.
        side: the side of the data.
        data_root: the folder of local data, where HP's files are searched.
        custom_split_path: a folder of `save_to_disk` that replaces WMDP's corpora.

    Raises:
        UserError: the name is unknown, or the local file does not exist or has no usable columns.
    """
    if name.lower() in NOTHING:
        return None
    if match := re.fullmatch(r"Tofu_(\w+)", name):
        choice = "TOFU_QA_forget" if side == "forget" else "TOFU_QA_retain"
        return Routed([choice], root={f"{side}_split": match[1]}, subset=match[1])
    if name in DOMAINS:
        return _wmdp(name, side, custom_split_path)
    if name == "HP":
        found = hp_files(data_root) or ["HP_QA"]
        return Routed(found[:1], texts=found[0] == "HP_text")
    if name in PLAIN:
        return Routed([name], texts=name in TEXTS)
    if is_local_path(name):
        return local(name, side)
    raise UserError.of([unknown("dataset", name, [*NAMES, "a local file"])])


def hp_files(data_root: str) -> list[str]:
    """The choices of HP whose file exists, questions before passages."""
    there = [
        (choice, local_file({"path": "hp", "name": stem, "split": "train"}, data_root))
        for choice, stem in (("HP_QA", "hp_qa"), ("HP_text", "hp"))
    ]
    return [choice for choice, file in there if file is not None]


def local(name: str, split: str) -> Routed:
    """Translate a local file or a folder of `save_to_disk` by its columns.

    Of a folder with several splits, `split` is read; `train` if it does not exist.

    Raises:
        UserError: it does not exist, or it has neither questions and answers nor text.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(
            f"dataset {name!r}: no such file",
            f"looked for {path.resolve()}; known names: {', '.join(NAMES)}",
        )
    names, splits = columns(path)
    values: dict[str, Any] = {"args.hf_args.path": name}
    if (splits and "train" not in splits) or split in splits:
        values["args.hf_args.split"] = split
    for question, answer in QUESTION_KEYS:
        if question in names and answer in names:
            own = {"args.question_key": question, "args.answer_key": answer}
            keys = own if (question, answer) != QUESTION_KEYS[0] else {}
            return Routed(["LOCAL_QA"], {**values, **keys})
    if "text" in names:
        return Routed(["LOCAL_text"], values, texts=True)
    typed = ", ".join(sorted(names)) or "none"
    raise UserError(
        f"dataset {name!r} has neither question and answer nor text; its columns: {typed}",
        f"rename its columns to one of {_pairs(QUESTION_KEYS)}, or to text",
    )


def _wmdp(name: str, side: SideName, custom_split_path: str | None) -> Routed:
    if custom_split_path is not None:
        return local(custom_split_path, side)
    text = f"{name} means the corpora for biology and cyber-security; there is no corpus for chemistry"
    notices = [text] if name == "WMDPALL" else []
    return Routed([f"WMDP_{domain}_{side}" for domain in DOMAINS[name]], texts=True, notices=notices)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{question} and {answer}" for question, answer in pairs)
