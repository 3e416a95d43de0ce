"""Read the rows of views, and report where missing rows were looked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import Fault, MissingDataError, MissingExtraError, UserError
from expunge.core.fingerprint import fingerprint
from expunge.data.rows import RowSet
from expunge.data.select import chosen_rows
from expunge.data.template import Template
from expunge.evaluation.harness_views import HARNESS, harness_rows
from expunge.evaluation.view_specs import ANSWERS, ViewSpec
from expunge.evaluation.views import View, Views

log = logging.getLogger(__name__)


def load_views(
    specs: Mapping[str, ViewSpec],
    names: Sequence[str],
    template: Template,
    data_root: Path | None,
    switches: Mapping[str, Any],
    longest: int | None = None,
) -> Views:
    """Read the rows of the needed views; absent ones are left out. Shared rows are read once.

    Raises:
        UserError: rows that cannot be read, of all views together; or no rows at all, because those of every
            optional view are missing.
    """
    read: dict[str, RowSet | UserError] = {}
    views = Views()
    faults: list[Fault] = []
    nowhere: dict[Fault, list[str]] = {}
    for name in names:
        spec = specs[name]
        if spec.absent:
            continue
        rows = _read(spec, data_root, read)
        if isinstance(rows, RowSet):
            views[name] = View(name, spec, rows, template, switches, longest)
        elif spec.optional and isinstance(rows, MissingDataError | MissingExtraError):
            fault = _missing(spec, rows, data_root)
            nowhere.setdefault(fault, []).append(name)
            views.missing[name] = f"{fault.message}: {fault.hint}"
        else:
            faults += [Fault(f"view {name!r}: {fault.message}", fault.hint) for fault in rows.faults]
    if not faults and not views and nowhere:
        faults = [
            Fault(f"nothing to score for {', '.join(found)}: {fault.message}", fault.hint)
            for fault, found in nowhere.items()
        ]
        faults.append(
            Fault("no rows at all for this suite", "or leave it out: eval=[...] lists the suites of a run")
        )
    if faults:
        raise UserError.of(faults)
    return views


def _read(spec: ViewSpec, data_root: Path | None, read: dict[str, RowSet | UserError]) -> RowSet | UserError:
    """The rows of a view, or the error. Equal sources are read once: failing hub requests are slow."""
    if spec.kind == HARNESS:
        return harness_rows(**spec.options)
    hf_args = _found(spec, data_root)
    source = fingerprint([hf_args, spec.select, spec.reshape])
    if source not in read:
        try:
            if hf_args.get("path") is None and spec.local:
                read[source] = MissingDataError(f"none of these files exists: {', '.join(spec.local)}")
            else:
                read[source] = rows = chosen_rows(hf_args, data_root, (), spec.select, spec.reshape)
                if spec.kind != ANSWERS:
                    log.info("%d rows of %s", len(rows), rows.source)
        except UserError as error:
            read[source] = error
    return read[source]


def _found(spec: ViewSpec, data_root: Path | None) -> dict[str, Any]:
    """The source: the first local file that exists, else `hf_args`."""
    named = str(spec.hf_args.get("path"))
    # A file that the user named comes before local files.
    own = named.startswith((".", "/", "~")) or Path(named).is_file()
    places = [] if own or data_root is None else [data_root / name for name in spec.local or ()]
    for place in places:
        if place.is_file():
            kept = {key: value for key, value in spec.hf_args.items() if key == "sample_by"}
            return {"path": str(place), **kept}
    return dict(spec.hf_args)


def _missing(spec: ViewSpec, error: UserError, data_root: Path | None) -> Fault:
    """The fault of an optional view whose rows are missing, in one line."""
    wanted = "/".join(str(spec.hf_args[key]) for key in ("path", "name") if spec.hf_args.get(key))
    message = f"no rows of {wanted}" if wanted else "its text is not given"
    if spec.local:
        place = spec.local[0] if data_root is None else (data_root / spec.local[0]).absolute()
        root = (
            "set paths.data_root (or EXPUNGE_DATA) to your folder of data, and " if data_root is None else ""
        )
        return Fault(message, f"{root}put it into {place}")
    last = (error.faults[0].hint or error.faults[0].message).splitlines()[-1]
    return Fault(message, last.strip().removeprefix("or "))
