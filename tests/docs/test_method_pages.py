"""The pages of the methods: one per choice of `trainer`, one form, true defaults, valid commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_readme import RUNS, commands

from expunge.config.method import extra_terms, hyper_parameters
from expunge.core.handlers import REQUIRED, Code, Required, Signature, read_signature

ROOT = Path(__file__).resolve().parents[2]
TRAINERS, PAGES = ROOT / "configs" / "trainer", ROOT / "docs" / "methods"
METHODS = sorted(path.stem for path in TRAINERS.glob("*.yaml") if path.stem != "finetune")
PROCEDURES = sorted(path.stem for path in (ROOT / "configs" / "procedure").glob("*.yaml"))
HEADINGS = ["Claim", "Formula", "Configuration", "The paper's numbers", "Differences", "Here", "Run it again"]
MARKS = re.compile(r"^<!-- mini -->\n(.*\n)?<!-- /mini -->$", re.MULTILINE | re.DOTALL)
READS = {
    "logp_BN": "log-probs",
    "seq_logp_B": "log-probs",
    "logits_BNV": "logits",
    "hidden_BTD": "states",
    "hidden_LBTD": "states",
}


def text_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """The rows of a text's tables, without the header and the rule."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows[2:] if not set(row[0]) <= set("- ")]


def method_yaml(name: str) -> dict[str, dict[str, Any]]:
    """A method's `args`, `method_args` and handler, merged over its defaults, without its base `finetune`."""
    if name == "finetune":
        return {"args": {}, "method_args": {}, "handler": {}}
    tree: Any = OmegaConf.to_container(OmegaConf.load(TRAINERS / f"{name}.yaml"), resolve=False)
    merged: dict[str, dict[str, Any]] = {"args": {}, "method_args": {}, "handler": {}}
    for node in (*(method_yaml(base) for base in tree["defaults"]), tree):
        for key in ("args", "method_args"):
            merged[key] |= node.get(key) or {}
        merged["handler"] = node.get("handler") or merged["handler"]
    return merged


def signature_of(name: str) -> Signature:
    return read_signature(str(method_yaml(name)["handler"]))


def defaults_of(name: str) -> dict[str, Any]:
    """What the page's table must list: hyper-parameters, effective weights, and the method's own budget."""
    tree = method_yaml(name)
    takes = {
        key: short(value)
        for key, value in {**hyper_parameters(signature_of(name)), **tree["method_args"]}.items()
    }
    for key, plain in (("schedule", "constant"), ("combine", "sum")):
        if takes[key] == plain:
            del takes[key]
    if takes["retain"] == "none":
        del takes["alpha"]
    return {**takes, **{f"args.{key}": value for key, value in tree["args"].items()}}


def short(value: Any) -> Any:
    """A default in the form of a page: handlers by their names, tuples as lists."""
    if isinstance(value, Required) or value == "???":
        return "required"
    if isinstance(value, Code):
        return value.text
    if isinstance(value, Mapping):
        return str(value["handler"]).rpartition(":")[2].lower()
    if isinstance(value, str) and ":" in value:
        return value.rpartition(":")[2]
    return list(value) if isinstance(value, tuple) else value


def retain_signature(name: str) -> Signature | None:
    tree = method_yaml(name)["method_args"]
    choice = tree["retain"]["handler"] if "retain" in tree else hyper_parameters(signature_of(name))["retain"]
    return (
        None
        if choice == "none"
        else read_signature(choice if ":" in choice else f"expunge.methods.retain:{choice}")
    )


def test_every_choice_has_a_page_and_every_page_a_choice():
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert sorted(set(METHODS) - pages) == []
    assert sorted(pages - set(METHODS) - set(PROCEDURES)) == []


@pytest.mark.parametrize("name", METHODS)
def test_the_form(name: str):
    text = text_of(name)
    assert text.startswith(f"# {name}\n\n")
    lead = text.partition("\n\n")[2].partition("\n\n## Claim\n")[0]
    assert lead
    assert "\n" not in lead
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert re.search(r"arXiv:\d{4}\.\d{5}", section(text, "Claim"))
    assert "https://github.com/" in section(text, "Claim")
    assert "```" in section(text, "Formula")
    assert section(text, "The paper's numbers").strip()
    assert MARKS.fullmatch(section(text, "Here").strip())
    assert section(text, "Run it again").strip() == f"`python -m benchmarks.methods_mini --only {name}`"
    assert len(text.splitlines()) <= 100, "a page has one or two screens"


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_true(name: str):
    rows = cells(section(text_of(name), "Configuration"))
    listed = {
        row[0].strip("`"): OmegaConf.create("x: " + row[1].strip("`").replace("\\|", "|"))["x"]
        for row in rows
    }
    listed = {key: list(value) if OmegaConf.is_list(value) else value for key, value in listed.items()}
    assert len(listed) == len(rows), "a parameter is listed twice"
    assert listed == defaults_of(name)
    assert all(len(row) == 3 and row[2] for row in rows)


@pytest.mark.parametrize("name", METHODS)
def test_the_page_shows_a_command_of_its_method(name: str):
    """The page shows a run of its method; `test_readme` validates every run on every page."""
    runs = [line for line in commands(PAGES / f"{name}.md") if line.startswith("expunge unlearn ")]
    assert any(f" trainer={name} " in f"{line} " for line in runs)
    assert {(f"{name}.md", line) for line in runs} <= set(RUNS)


def test_the_index_says_what_the_code_does():
    rows = {
        re.sub(r"^\[(.*)\]\(.*\)$", r"\1", row[0]): row
        for row in cells((PAGES / "README.md").read_text(encoding="utf-8"))
    }
    assert sorted(set(rows) - set(PROCEDURES)) == METHODS
    for name in METHODS:
        own = (signature_of(name), *extra_terms(signature_of(name)).values())
        signatures = [item for item in (*own, retain_signature(name)) if item is not None]
        reads = {need for item in signatures for need in item.positional}
        reference = {READS["_".join(need.split("_")[2:])] for need in reads if need.startswith("ref_")}
        assert rows[name][0] == f"[{name}]({name}.md)"
        assert rows[name][2] == signature_of(name).decorators["loss"]["kind"]
        assert {rows[name][3]} - {"-"} == reference, name
        assert (rows[name][4] != "-") == any(
            need.removeprefix("ref_").startswith("alternate_") for need in reads
        ), name
        assert f"arXiv:{rows[name][5]}" in section(text_of(name), "Claim"), name


def test_required_differs_from_none():
    """A page that leaves out a required value cannot pass."""
    assert hyper_parameters(signature_of("KL"))["gamma"] is REQUIRED
    assert (
        defaults_of("KL")["gamma"]
        == defaults_of("GA_FT")["alpha"]
        == defaults_of("PDU")["retain_loss_eps"]
        == "required"
    )
    assert defaults_of("GRU")["combine"] == "gru"
    assert defaults_of("RMU_WMDP")["args.max_steps"] == 150
