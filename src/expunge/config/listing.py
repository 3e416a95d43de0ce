"""List the choices and describe each one, from YAML and source text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expunge.config.location import choices, config_roots, group_names
from expunge.config.method import extra_terms, hyper_parameters, loss_defaults
from expunge.core.errors import UserError, did_you_mean, unknown
from expunge.core.handlers import Signature, read_signature

# The user's name of a kind, and the group that holds it.
KINDS = {
    "methods": "trainer",
    "procedures": "procedure",
    "models": "model",
    "experiments": "experiment",
    "budgets": "budget",
    "retain": "retain",
    "compat": "compat",
    "datasets": "data/datasets",
    "data": "data",
    "suites": "eval",
    "paths": "paths",
    "collators": "collator",
}


@dataclass(frozen=True)
class Entry:
    """One choice.

    Attributes:
        name: the name as typed.
        kind: methods, metrics, models, ...
        summary: one line about it.
        path: the YAML file.
    """

    name: str
    kind: str
    summary: str
    path: Path


def kinds(config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The kinds that `ls` can list: ours, and the groups that exist only in a user's folder."""
    covered = set(KINDS.values())
    return [
        *KINDS,
        "metrics",
        *(group for group in group_names(config_roots(config_dirs)) if group not in covered),
    ]


def entries(kind: str, config_dirs: Sequence[str | Path] = ()) -> list[Entry]:
    """The choices of a kind, sorted by name.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in kinds(config_dirs):
        raise UserError.of([unknown("kind of choice", kind, kinds(config_dirs))])
    roots = config_roots(config_dirs)
    if kind == "metrics":
        return _metrics(roots)
    files = choices(roots, KINDS.get(kind, kind))
    summaries: dict[str, Callable[[Path], str]] = {
        "methods": _method_summary,
        "procedures": _procedure_summary,
        "models": _model_summary,
    }
    summarise = summaries.get(kind, comment)
    return [Entry(name, kind, summarise(path), path) for name, path in files.items()]


def show(name: str, config_dirs: Sequence[str | Path] = ()) -> str:
    """The pages of all choices with this name, of any kind.

    Raises:
        UserError: no kind has such a choice.
    """
    every = [entry for kind in kinds(config_dirs) for entry in entries(kind, config_dirs)]
    found = [entry for entry in every if entry.name == name.removesuffix(".yaml")]
    if not found:
        names = sorted({entry.name for entry in every})
        rest = f"`expunge ls KIND` lists the choices; kinds: {', '.join(kinds(config_dirs))}"
        raise UserError(f"unknown choice {name!r}", did_you_mean(name, names, rest, count=3))
    return "\n\n".join(page_of(entry) for entry in found)


def comment(path: Path) -> str:
    """The first comment line of a YAML file, package directives ignored."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            return ""
    return ""


def handler_of(path: Path) -> str | None:
    """The handler of a method's YAML."""
    handler = _load(path).get("handler")
    return handler if isinstance(handler, str) and ":" in handler else None


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} is not readable YAML: {error}", "correct the file") from error
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def _metrics(roots: Sequence[Path]) -> list[Entry]:
    """The metrics of all suites; each metric once."""
    found: dict[str, Entry] = {}
    for suite, path in choices(roots, "eval").items():
        for name, node in _suite_metrics(path).items():
            summary = _signature_summary(node.get("handler")) if isinstance(node, dict) else ""
            found.setdefault(name, Entry(name, "metrics", f"{summary} [{suite}]", path))
    return [found[name] for name in sorted(found)]


def _suite_metrics(path: Path) -> dict[str, Any]:
    tree = _load(path)
    nodes = [tree, *[node for node in tree.values() if isinstance(node, dict)]]
    return next((node["metrics"] for node in nodes if isinstance(node.get("metrics"), dict)), {})


def _method_summary(path: Path) -> str:
    """The summary of the method's function; if the function belongs to another method, the file's comment."""
    handler = handler_of(path)
    own = path.stem.replace("_", "").lower() == (handler or "").rpartition(":")[2].replace("_", "")
    return (
        (_signature_summary(handler) if own else comment(path))
        or _signature_summary(handler)
        or comment(path)
    )


def _procedure_summary(path: Path) -> str:
    return _signature_summary(_nested_handler(path, "procedure")) or comment(path)


def _nested_handler(path: Path, key: str) -> Any:
    """The handler of a YAML file whose content is below a key."""
    return (_load(path).get(key) or {}).get("handler")


def _model_summary(path: Path) -> str:
    args = _load(path).get("model_args") or {}
    return str(args.get("pretrained_model_name_or_path") or comment(path))


def _signature_summary(handler: Any) -> str:
    signature = _signature(handler)
    return signature.summary if signature else ""


def _signature(handler: Any) -> Signature | None:
    try:
        return read_signature(handler) if isinstance(handler, str) else None
    except UserError:
        return None


def page_of(entry: Entry) -> str:
    """The page of one choice: its file, the inputs and parameters of its function, the YAML."""
    lines = [f"{entry.name} ({entry.kind})", f"  file: {entry.path}"]
    if entry.kind == "metrics":
        node = _suite_metrics(entry.path)[entry.name]
        yaml = OmegaConf.to_yaml(OmegaConf.create(node)).rstrip()
        return "\n".join([*lines, *_about(_signature(node.get("handler")), weights=False), "", yaml])
    if entry.kind in ("methods", "retain", "procedures"):
        handler = (
            handler_of(entry.path)
            if entry.kind == "methods"
            else _nested_handler(entry.path, entry.kind.removesuffix("s"))
        )
        lines += _about(_signature(handler), weights=entry.kind == "methods")
    return "\n".join([*lines, "", entry.path.read_text(encoding="utf-8").rstrip()])


def _about(signature: Signature | None, weights: bool) -> list[str]:
    if signature is None:
        return []
    decorator = signature.decorators.get("procedure") or loss_defaults(signature)
    reads = signature.positional[1:] if "procedure" in signature.decorators else signature.positional
    takes = hyper_parameters(signature) if weights else dict(signature.keyword)
    lines = [
        f"  {signature.summary}",
        f"  handler: {signature.handler}",
        f"  reads: {', '.join(reads) or 'nothing'}",
    ]
    lines += [
        f"  term {key}: {term.handler}, reads: {', '.join(term.positional)}"
        for key, term in extra_terms(signature).items()
    ]
    lines.append(
        "  takes: " + (", ".join(f"{name}={default!r}" for name, default in takes.items()) or "nothing")
    )
    if decorator.get("stages"):
        lines.append(
            "  stages: "
            + ", ".join(f"{stage} (on the {side} rows)" for stage, side in decorator["stages"].items())
        )
    lines += [f"  {name}: {decorator[name]}" for name in ("kind", "paper", "code") if decorator.get(name)]
    return lines
