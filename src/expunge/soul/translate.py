"""Translate a command line of the SOUL family to a configuration's name, overrides and notices."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from expunge.config.checks.difficulty import MAKE
from expunge.core.errors import Fault, UserError
from expunge.soul.command import Given, build_parser, read
from expunge.soul.difficulty_flags import ONLY, only_scores
from expunge.soul.finetuning import translate_finetuning
from expunge.soul.flags import FINETUNE, UNLEARN, Flag
from expunge.soul.unlearning import translate_unlearning
from expunge.soul.writing import key_of, replaced

SCRIPTS = {
    "unlearn_model": "Make a model forget, and evaluate it. This is the SOUL family's command line.",
    "Fine_tune_tofu": "Finetune on TOFU. This is the SOUL family's command line.",
    "Fine_tune_hp": "Finetune on questions and passages of a book. This is the SOUL family's command line.",
    "Fine_tune_wmdp": "Finetune on WMDP's corpora. This is the SOUL family's command line.",
}


class SoulCommand(NamedTuple):
    """A translated command line.

    The user's own overrides are last. The notices are about important defaults, and about flags that are
    translated or ignored. `written` maps an override to its flag as given; `verb` is train, unlearn, eval or
    score.
    """

    config_name: str
    overrides: tuple[str, ...]
    notices: tuple[str, ...]
    written: dict[str, str]
    verb: str

    def in_flags(self, error: UserError) -> UserError:
        """The configuration's faults, with the typed flags instead of their overrides."""
        return UserError.of(
            Fault(self._in_flags(fault.message), self._in_flags(fault.hint)) for fault in error.faults
        )

    def _in_flags(self, text: str) -> str:
        text = text.replace(MAKE, f"to write it, use the same command line with --{ONLY} 1")
        for override, flag in self.written.items():
            key, name = override.partition("=")[0], flag.partition(" ")[0]
            # A hint may have an example: the same key with another value.
            text = re.sub(rf"{re.escape(key)}=(\S+)", rf"{name} \1", text.replace(override, flag))
        return text


def flags_of(script: str) -> tuple[Flag, ...]:
    """The flags of a script."""
    return UNLEARN if script == "unlearn_model" else FINETUNE[script.removeprefix("Fine_tune_")]


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser of a script."""
    return build_parser(
        f"{script}.py", flags_of(script), SCRIPTS[script], with_file=script == "unlearn_model"
    )


def translate(
    argv: Sequence[str] | argparse.Namespace, script: str = "unlearn_model", config_dirs: tuple[str, ...] = ()
) -> SoulCommand:
    """Translate a command line, for `config.validate.load_config`. Local files are read, nothing is loaded.

    Args:
        argv: the arguments, or the namespace from `parser_of(script)`.
        script: one of `SCRIPTS`.
        config_dirs: the user's folders with further choices.
    """
    flags = flags_of(script)
    given = read(parser_of(script), flags, argv)
    scores = script == "unlearn_model" and only_scores(given)
    if script == "unlearn_model":
        name, overrides, notices = translate_unlearning(given, _data_root(given), config_dirs)
    else:
        name, overrides, notices = translate_finetuning(
            script.removeprefix("Fine_tune_"), given, _data_root(given)
        )
    if given.faults:
        raise UserError.of(dict.fromkeys(given.faults))
    chosen = replaced(overrides, given.overrides)
    written = {text: flag for text, flag in given.written.items() if text in chosen}
    return SoulCommand(name, chosen, tuple(notices), written, "score" if scores else name)


def _data_root(given: Given) -> str:
    typed = [text.partition("=")[2] for text in given.overrides if key_of(text) == "paths.data_root"]
    return typed[-1] if typed else os.environ.get("EXPUNGE_DATA", "data")
