"""List the choices and describe each one, from YAML and source text alone."""

from __future__ import annotations

from collections.abc import Sequence
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
BELOW = {"methods": "", "procedures": "procedure", "retain": "retain"}
"""The kinds whose files name a function, and the key of its section; "" = the top of the file."""


@dataclass(frozen=True)
class Entry:
    """One choice."""

    name: str
    kind: str
    summary: str
    path: Path


def kinds(config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The kinds that `ls` can list: ours, and the groups that exist only in a user's folder."""
    own = [group for group in group_names(config_roots(config_dirs)) if group not in KINDS.values()]
    return [*KINDS, "metrics", *own]


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
    return [Entry(name, kind, _summary(kind, path), path) for name, path in files.items()]


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


def page_of(entry: Entry) -> str:
    """The page of one choice: its file, the inputs and parameters of its function, the YAML."""
    if entry.kind == "metrics":
        node = _suite_metrics(entry.path)[entry.name]
        about = _about(_signature(node.get("handler")), weights=False)
        yaml = OmegaConf.to_yaml(OmegaConf.create(node))
    else:
        signature = _signature_of(entry.kind, entry.path) if entry.kind in BELOW else None
        about = _about(signature, weights=entry.kind == "methods")
        yaml = entry.path.read_text(encoding="utf-8")
    return "\n".join([f"{entry.name} ({entry.kind})", f"  file: {entry.path}", *about, "", yaml.rstrip()])


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} is not readable YAML: {error}", "correct the file") from error
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def _summary(kind: str, path: Path) -> str:
    """One line about a choice: about its function, or the first comment of its file."""
    if kind == "models":
        args = _load(path).get("model_args") or {}
        return str(args.get("pretrained_model_name_or_path") or _comment(path))
    signature = _signature_of(kind, path) if kind in ("methods", "procedures") else None
    if signature is None:
        return _comment(path)
    # A function may belong to another method, and the file then sets its parameters.
    own = path.stem.replace("_", "").lower() == signature.name.replace("_", "") or kind == "procedures"
    return (signature.summary if own else _comment(path)) or signature.summary or _comment(path)


def _comment(path: Path) -> str:
    """The first comment line of a YAML file, package directives ignored."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            return ""
    return ""


def _metrics(roots: Sequence[Path]) -> list[Entry]:
    """The metrics of all suites; each metric once."""
    found: dict[str, Entry] = {}
    for suite, path in choices(roots, "eval").items():
        for name, node in _suite_metrics(path).items():
            signature = _signature(node.get("handler")) if isinstance(node, dict) else None
            summary = f"{signature.summary if signature else ''} [{suite}]"
            found.setdefault(name, Entry(name, "metrics", summary, path))
    return [found[name] for name in sorted(found)]


def _suite_metrics(path: Path) -> dict[str, Any]:
    tree = _load(path)
    nodes = [tree, *[node for node in tree.values() if isinstance(node, dict)]]
    return next((node["metrics"] for node in nodes if isinstance(node.get("metrics"), dict)), {})


def _signature_of(kind: str, path: Path) -> Signature | None:
    """The signature of the function that a choice's file names; None if it names none that can be read."""
    tree, key = _load(path), BELOW[kind]
    return _signature((tree if not key else tree.get(key) or {}).get("handler"))


def _signature(handler: Any) -> Signature | None:
    try:
        return read_signature(handler) if isinstance(handler, str) else None
    except UserError:
        return None


def _about(signature: Signature | None, weights: bool) -> list[str]:
    if signature is None:
        return []
    decorator = signature.decorators.get("procedure") or loss_defaults(signature)
    reads = signature.positional[1:] if "procedure" in signature.decorators else signature.positional
    takes = hyper_parameters(signature) if weights else signature.keyword
    stages = (f"{stage} (on the {side} rows)" for stage, side in decorator.get("stages", {}).items())
    facts = [
        ("handler", signature.handler),
        ("reads", ", ".join(reads) or "nothing"),
        *(
            (f"term {key}", f"{term.handler}, reads: {', '.join(term.positional)}")
            for key, term in extra_terms(signature).items()
        ),
        ("takes", ", ".join(f"{name}={default!r}" for name, default in takes.items()) or "nothing"),
        ("stages", ", ".join(stages)),
        *((name, decorator.get(name)) for name in ("kind", "paper", "code")),
    ]
    return [f"  {signature.summary}", *(f"  {name}: {value}" for name, value in facts if value)]
