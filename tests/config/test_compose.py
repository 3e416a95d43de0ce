from __future__ import annotations

from pathlib import Path

import pytest

from composed import compose_config
from expunge.config.compose import holdout_of, retain_of
from expunge.core.errors import UserError

TOFU = ("experiment=unlearn/tofu/default", "task_name=x")
QUICK = ("task_name=x", "eval=null")


def test_suffixes_and_output_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", "/somewhere/data")
    with_suffix = compose_config("unlearn.yaml", ["experiment=unlearn/tofu/default.yaml", "task_name=x"])
    assert with_suffix.tree == compose_config("unlearn", TOFU).tree
    assert with_suffix.get("paths.output_dir") == "saves/unlearn/x"
    assert with_suffix.get("trainer.args.output_dir") == "saves/unlearn/x"
    assert with_suffix.get("paths.data_root") == "/somewhere/data"
    monkeypatch.delenv("EXPUNGE_DATA")
    assert compose_config("unlearn", TOFU).get("paths.data_root") == "data"


def test_tree_is_plain() -> None:
    def check(node: object) -> None:
        assert type(node) in (dict, list, str, int, float, bool, type(None)), type(node)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            check(child)

    check(compose_config("unlearn", TOFU).tree)


def test_precedence(own_configs: Path) -> None:
    """signature < budget < method < experiment that names it < command line, each in a real composition."""

    def lr_epochs(*overrides: str) -> tuple[float, int]:
        cfg = compose_config("unlearn", ["task_name=x", "eval=null", *overrides], [own_configs])
        return cfg.get("trainer.args.learning_rate"), cfg.get("trainer.args.num_train_epochs")

    # A default of a signature is not in the tree: it stays in the function.
    assert "beta" not in compose_config("unlearn", ["task_name=x", "trainer=Mine"], [own_configs]).section(
        "trainer.method_args"
    )
    assert lr_epochs("trainer=NPO") == (1e-5, 10)  # the budget's
    assert lr_epochs("trainer=Mine") == (1e-4, 10)  # the method's lr, the budget's epochs
    # A generic experiment does not change them.
    assert lr_epochs("trainer=Mine", "experiment=unlearn/own/generic") == (1e-4, 10)
    assert lr_epochs("trainer=Mine", "experiment=unlearn/tofu/default") == (1e-4, 10)
    assert lr_epochs("trainer=Mine", "budget=tofu_finetune") == (1e-4, 5)
    assert lr_epochs("experiment=unlearn/own/named") == (3e-4, 10)  # an experiment that names the method
    # The command line wins.
    assert lr_epochs("experiment=unlearn/own/named", "trainer.args.learning_rate=5e-5") == (5e-5, 10)
    assert lr_epochs("experiment=unlearn/own/named", "+trainer.args.learning_rate=5e-5") == (5e-5, 10)


def test_a_users_own_group(own_configs: Path) -> None:
    """None of our defaults lists names the group `flavour`."""
    cfg = compose_config("unlearn", [*QUICK, "trainer=Mine", "flavour=sour"], [own_configs])
    assert cfg.get("trainer.method_args.power") == 7
    with pytest.raises(UserError, match="did you mean 'sour'"):
        compose_config("unlearn", [*QUICK, "flavour=sou"], [own_configs])


def test_existing_key_with_plus_is_a_notice() -> None:
    cfg = compose_config("unlearn", [*QUICK, "+trainer.args.logging_steps=1", "+trainer.args.eval_steps=7"])
    assert cfg.get("trainer.args.logging_steps") == 1
    assert cfg.get("trainer.args.eval_steps") == 7
    assert [notice for notice in cfg.notices if "logging_steps=1" in notice and "exists already" in notice]
    assert not [notice for notice in cfg.notices if "eval_steps" in notice]


def test_keys_that_no_yaml_has_reach_the_function() -> None:
    assert (
        compose_config("unlearn", [*QUICK, "trainer.method_args.gamma=0.5"]).get("trainer.method_args.gamma")
        == 0.5
    )


def test_deletion() -> None:
    assert "weight_decay" not in compose_config("unlearn", [*TOFU, "~trainer.args.weight_decay"]).section(
        "trainer.args"
    )
    assert compose_config("unlearn", ["task_name=x", "eval=null"]).section("eval") == {}
    with pytest.raises(UserError, match=r"~trainer\.args\.wait_decay"):
        compose_config("unlearn", [*TOFU, "~trainer.args.wait_decay"])


def test_splits_follow_the_forget_split() -> None:
    cfg = compose_config("unlearn", [*TOFU, "forget_split=forget05"])
    assert (cfg.get("retain_split"), cfg.get("holdout_split")) == ("retain95", "holdout05")
    assert cfg.get("data.retain.TOFU_QA_retain.args.hf_args.name") == "retain95"
    assert cfg.get("eval.tofu.holdout_split") == "holdout05"
    assert (
        compose_config("unlearn", [*TOFU, "forget_split=forget05", "retain_split=retain90"]).get(
            "retain_split"
        )
        == "retain90"
    )
    assert (retain_of("forget01"), holdout_of("forget01")) == ("retain99", "holdout01")
    assert (retain_of("mine"), holdout_of(None)) == (None, None)


def test_one_value_for_the_seed() -> None:
    assert compose_config("unlearn", [*QUICK, "seed=3"]).get("trainer.args.seed") == 3
    assert compose_config("unlearn", [*QUICK, "trainer.args.seed=4"]).get("seed") == 4
    with pytest.raises(UserError, match="differ"):
        compose_config("unlearn", [*QUICK, "trainer.args.seed=4", "seed=5"])


def test_a_required_value_stays_marked_as_missing() -> None:
    cfg = compose_config("unlearn", ["experiment=unlearn/tofu/default"])
    assert cfg.get("task_name") == "???"
    assert cfg.get("paths.output_dir") == "saves/unlearn/???"


def test_retain_group_and_the_fields_key() -> None:
    assert "retain" not in compose_config("unlearn", [*QUICK, "trainer=NPO"]).section("trainer.method_args")
    group = compose_config("unlearn", [*QUICK, "trainer=NPO", "retain=kl"])
    field = compose_config("unlearn", [*QUICK, "trainer=NPO", "trainer.method_args.retain_loss_type=KL"])
    assert group.get("trainer.method_args.retain") == {"handler": "expunge.methods.retain:kl"}
    assert field.tree == group.tree
    assert any("retain=kl" in notice for notice in field.notices)
    assert (
        compose_config("unlearn", [*QUICK, "retain=none"]).get("trainer.method_args.retain.handler") is None
    )
    with pytest.raises(UserError, match="differ"):
        compose_config("unlearn", [*QUICK, "retain=nll", "trainer.method_args.retain_loss_type=KL"])
    with pytest.raises(UserError, match="unknown retain term 'KLL'"):
        compose_config("unlearn", [*QUICK, "trainer.method_args.retain_loss_type=KLL"])


def test_all_faults_of_composing_together() -> None:
    with pytest.raises(UserError) as caught:
        compose_config(
            "unlearn",
            [
                "trainer=NPOO",
                "experiment=unlearn/tofu/defaul",
                "forget_spilt=forget10",
                "model=Llama",
                "nonsense",
            ],
        )
    messages = [str(fault) for fault in caught.value.faults]
    assert len(messages) == 5
    for fragment in (
        "trainer=NPOO: unknown method",
        "did you mean 'NPO'",
        "did you mean 'unlearn/tofu/default'",
        "did you mean 'forget_split'",
    ):
        assert any(fragment in message for message in messages), fragment
    assert any("neither an option nor KEY=VALUE" in message for message in messages)


@pytest.mark.parametrize("override", ["seed=1,2", "trainer=NPO,SimNPO"])
def test_sweeps_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="several values"):
        compose_config("unlearn", ["task_name=x", override])


def test_unknown_config_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown config 'unlern'"):
        compose_config("unlern")
    with pytest.raises(UserError, match="no such folder"):
        compose_config("unlearn", (), [tmp_path / "none"])


def test_a_users_file_that_is_never_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "NPO.yaml").write_text("handler: a:b\n")
    cfg = compose_config("unlearn", ["task_name=x", "trainer=NPO"], [tmp_path])
    assert cfg.get("trainer.handler") == "expunge.methods.npo:npo"
    assert any("NPO.yaml is not used" in notice for notice in cfg.notices)


def test_hydras_own_settings_are_ignored() -> None:
    cfg = compose_config("unlearn", [*TOFU, "hydra.run.dir=somewhere"])
    assert any("hydra.run.dir" in notice for notice in cfg.notices)
    assert "hydra" not in cfg.tree


def test_finetuning_on_another_dataset() -> None:
    cfg = compose_config(
        "train",
        [
            "experiment=finetune/tofu/default",
            "task_name=r",
            "data/datasets@data.train=TOFU_QA_retain",
            "retain_split=retain90",
        ],
    )
    assert list(cfg.section("data.train")) == ["TOFU_QA_retain"]
    assert cfg.get("data.train.TOFU_QA_retain.args.hf_args.name") == "retain90"
    assert cfg.get("mode") == "finetune"
