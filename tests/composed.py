"""Compose a configuration without validating it; shared by the tests of several rooms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expunge.config import compose
from expunge.core.config import Config
from expunge.core.errors import UserError


def compose_config(
    config_name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> Config:
    """The composed configuration; a `UserError` with all its faults otherwise."""
    composition = compose.compose_config(config_name, overrides, config_dirs)
    if composition.faults or composition.config is None:
        raise UserError.of(composition.faults)
    return composition.config
