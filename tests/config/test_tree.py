"""Every shipped YAML composes, and every handler in it exists in the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from composed import compose_config
from expunge.config.location import NOT_GROUPS, choices, config_roots, configs_dir, group_names
from expunge.config.validate import checked
from expunge.core.handlers import read_signature

ROOTS = config_roots()
# Groups whose choices are composed one at a time: suites are long, and the others change which keys exist.
ALONE = ("experiment", "data", "data/datasets", "eval")
BASES = {"finetune": "train", "unlearn": "unlearn", "eval": "eval"}


def handlers(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for item in node for found in handlers(item)]
    if not isinstance(node, dict):
        return []
    own = [node["handler"]] if isinstance(node.get("handler"), str) else []
    return own + [found for item in node.values() for found in handlers(item)]


def compositions() -> list[tuple[str, tuple[str, ...]]]:
    """(config, overrides) that contain every choice; choices of several groups are combined to save time."""
    columns = {group: list(choices(ROOTS, group)) for group in group_names(ROOTS) if group not in ALONE}
    longest = max(len(names) for names in columns.values())
    rows = [
        tuple(f"{group}={names[index % len(names)]}" for group, names in columns.items())
        for index in range(longest)
    ]
    out = [("unlearn", (*row, "eval=null")) for row in rows] + [
        ("eval", (f"eval={name}",)) for name in choices(ROOTS, "eval")
    ]
    out += [
        (
            "train",
            (f"data/datasets@data.train=[{','.join(choices(ROOTS, 'data/datasets'))}]", "data=finetune"),
        ),
        ("unlearn", ("data=unlearn",)),
    ]
    return out + [
        (BASES[name.split("/")[0]], (f"experiment={name}",)) for name in choices(ROOTS, "experiment")
    ]


@pytest.mark.parametrize(("config", "overrides"), compositions(), ids=str)
def test_every_choice_composes_and_its_handlers_exist(
    config: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    cfg = compose_config(
        config, [*overrides, "task_name=x", "forget_split=forget10", f"paths.data_root={tmp_path}"]
    )
    found = handlers(cfg.tree)
    assert found
    for handler in found:
        read_signature(handler)
    if any(override.startswith("experiment=") for override in overrides):
        assert checked(cfg).faults == []


def test_every_data_yaml_is_composed_above() -> None:
    assert set(choices(ROOTS, "data")) == {"finetune", "unlearn"}


def test_every_yaml_is_reached() -> None:
    reached = {path for group in group_names(ROOTS) for path in choices(ROOTS, group).values()}
    top = set(configs_dir().glob("*.yaml"))
    rest = {
        path
        for path in configs_dir().rglob("*.yaml")
        if path.relative_to(configs_dir()).parts[0] not in NOT_GROUPS
    }
    assert reached | top == rest


@pytest.mark.parametrize("path", choices(ROOTS, "trainer").values(), ids=lambda path: path.stem)
def test_no_shared_trainer_yaml_holds_a_budget(path: Path) -> None:
    """The base of all methods must not set a budget, because `finetune` merges after the budget."""
    if path.stem == "finetune":
        text = path.read_text()
        assert not [
            key
            for key in ("learning_rate:", "num_train_epochs:", "batch_size:", "accumulation_steps:")
            if key in text
        ]


def test_generic_experiments_leave_the_method_alone() -> None:
    for path in (path for name, path in choices(ROOTS, "experiment").items() if "/tofu/" in name):
        text = path.read_text()
        assert "method_args" not in text
        assert "learning_rate" not in text


def test_no_yaml_asks_hydra() -> None:
    assert not [path for path in configs_dir().rglob("*.yaml") if "${hydra:" in path.read_text()]


def test_accelerate_config_has_what_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(configs_dir() / "accelerate" / "default_config.yaml"))
    assert (loaded.num_processes, str(loaded.distributed_type.value)) == (1, "NO")
