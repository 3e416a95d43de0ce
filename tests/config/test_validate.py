from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from composed import compose_config
from expunge.config.describe import describe
from expunge.config.local_data import count_rows, local_file
from expunge.config.validate import checked, load_config
from expunge.core.config import Config
from expunge.core.errors import UserError

QUICK = ("experiment=unlearn/tofu/default", "task_name=x", "eval=null")
TOFU = ("experiment=unlearn/tofu/default", "task_name=x")


def faults(*overrides: str, name: str = "unlearn", dirs: tuple[Path, ...] = ()) -> list[str]:
    try:
        load_config(name, overrides, dirs)
    except UserError as error:
        return [str(fault) for fault in error.faults]
    return []


def set_value(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


@pytest.fixture(scope="module")
def base() -> Config:
    return compose_config("unlearn", [*TOFU, "trainer=NPO", "paths.data_root=/nowhere"])


def found_with(base: Config, *overrides: str) -> list[str]:
    """The faults of `base` with simple values set; one composition is shared by many tests."""
    tree = copy.deepcopy(dict(base.tree))
    for override in overrides:
        key, _, value = override.partition("=")
        set_value(tree, key, yaml.safe_load(value))
    return [str(fault) for fault in checked(Config(tree, (*base.overrides, *overrides))).faults]


def test_sound_configuration_has_no_fault(
    base: Config, tofu_root: Path, model_folder: Callable[[str], Path]
) -> None:
    local = (
        f"model.model_args.pretrained_model_name_or_path={model_folder('model')}",
        f"paths.data_root={tofu_root}",
    )
    assert faults("experiment=unlearn/tofu/idk", "task_name=x", "eval=null", *local) == []
    for handler in (
        "grad_ascent:grad_ascent",
        "grad_diff:grad_diff",
        "npo:npo",
        "simnpo:simnpo",
        "finetune:finetune",
    ):
        assert found_with(base, f"trainer.handler=expunge.methods.{handler}", "eval=null", *local) == []


def test_all_faults_are_reported_together(tofu_root: Path) -> None:
    found = faults(
        "experiment=unlearn/tofu/default",
        "trainer=NPO",
        f"paths.data_root={tofu_root}",
        "forget_split=forgt10",
        "retain_split=retain90",
        "retain_logs_path=nowhere/TOFU_EVAL.json",
        "trainer.method_args.betta=3",
        "trainer.args.learnig_rate=1e-5",
        "trainer.args.learning_rate=0",
        "trainer.args.num_train_epochs=-1",
        "trainer.args.per_device_train_batch_size=0",
        "model.model_args.pretrained_model_name_or_path=./no/model",
        "model.model_args.attn_implementatoin=eager",
        "forget_spilt=x",
    )
    expected = {
        "task_name is not given": "task_name=VALUE",
        "forget_split=forgt10: unknown split": "did you mean 'forget10'",
        "retain_logs_path=nowhere/TOFU_EVAL.json: no such file": "looked for",
        "trainer.method_args.betta=3: npo takes no 'betta'": "did you mean 'beta'",
        "trainer.args.learnig_rate=1e-5": "'learning_rate'",
        "trainer.args.learning_rate=0: must be a number above 0": "",
        "trainer.args.num_train_epochs=-1: must be": "",
        "trainer.args.per_device_train_batch_size=0: must be a whole number above 0": "",
        "model.model_args.pretrained_model_name_or_path=./no/model: no such folder": "looked for",
        "model.model_args.attn_implementatoin=eager": "'attn_implementation'",
        "forget_spilt=x: there is no key": "did you mean 'forget_split'",
    }
    for message, hint in expected.items():
        assert [fault for fault in found if message in fault and hint in fault], message
    assert len(found) == len(expected), found


def test_unknown_method_is_reported_with_the_rest_but_its_arguments_are_not_checked() -> None:
    found = faults(
        "trainer=NPOO",
        "trainer.method_args.beta=1",
        "trainer.args.learning_rate=0",
        "task_name=x",
        "retain_logs_path=none.json",
    )
    assert len(found) == 2
    assert "did you mean 'NPO'" in found[0]
    assert "none.json" in found[1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.args.eval_strategy=step", "did you mean 'steps'?"),
        ("trainer.args.resume_from_checkpoint=nowhere", "no such folder"),
        ("trainer.args.gradient_accumulation_steps=1.5", "whole number"),
        ("trainer.args.learning_rate=fast", "must be a number"),
        ("trainer.method_args.gamma=-1", "of at least 0"),
        ("trainer.method_args.retain=kl", "retain=nll"),
        ("trainer.handler=expunge.methods.npo:nqo", "did you mean 'npo'"),
        ("model.model_args.torch_dtype=bfloat61", "bfloat16"),
        ("model.template_args.sytem_prompt=x", "'system_prompt'"),
        ("data.anchor=forgt", "forget, retain"),
        ("data.forget.TOFU_QA_forget.args.max_len=5", "max_length"),
        ("collator.DataCollatorForSupervisedDataset.args.padding_side=left", "pads on the right"),
        ("mode=unlearning", "did you mean 'unlearn'"),
        ("eval.tofu.batch_size=0", "whole number above 0"),
        ("data.retain.TOFU_QA_retain.args.hf_args.name=null", "retain_split is not given"),
        ("data.retain={}", "data.retain is empty"),
        ("eval.tofu.metrics.forget_quality.truth_ration=x", "'truth_ratio'"),
        ("eval.tofu.metrics.forgot_quality={}", "unknown metric"),
        ("compat.switches.privleek.eps=1", "did you mean 'privleak'"),
        ("compat.switches.privleak.epsilon=1", "did you mean 'eps'"),
    ],
)
def test_each_fault(base: Config, override: str, words: str) -> None:
    found = found_with(base, override)
    assert len(found) == 1, found
    assert words in found[0]


def test_dpo_without_alternates() -> None:
    (found,) = faults(*QUICK, "trainer=DPO")
    assert "unlearn/tofu/idk" in found


def test_elm_without_alternates(tmp_path: Path) -> None:
    """Its fluency term reads them, so either they are written or the term is switched off."""
    elm = (*QUICK, "trainer=ELM", "trainer.method_args.concept=novels")
    (found,) = faults(*elm)
    assert "expunge alternates --novice-of" in found
    assert "trainer.method_args.fluency=0" in found
    assert faults(*elm, "trainer.method_args.fluency=0") == []
    path = tmp_path / "novice.json"
    path.write_text("[]")
    data = (
        "data/datasets@data.forget=TOFU_QA_forget_altpo",
        f"data.forget.TOFU_QA_forget_altpo.args.alternate_path={path}",
    )
    assert faults(*elm, *data) == []
    (negative,) = faults(*elm, *data, "trainer.method_args.fluency=-1")
    assert "fluency=-1: must be a number of at least 0" in negative
    (misspelt,) = faults(*elm, *data, "trainer.method_args.fluancy=1")
    assert "did you mean 'fluency'" in misspelt
    (other,) = faults(*QUICK, "trainer=NPO", "trainer.method_args.fluency=1")
    assert "fluency" in other


def test_own_method(own_configs: Path) -> None:
    assert faults("task_name=x", "eval=null", "trainer=Mine", dirs=(own_configs,)) == []
    (missing,) = faults(
        "task_name=x", "eval=null", "trainer=Mine", "~trainer.method_args.power", dirs=(own_configs,)
    )
    assert "trainer.method_args.power is not given" in missing
    (odd,) = faults(
        "task_name=x", "eval=null", "trainer.handler=own_method_for_tests:odd", dirs=(own_configs,)
    )
    assert "forget_speed_B" in odd


def test_model_paths(base: Config, tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    key = "model.model_args.pretrained_model_name_or_path"
    good, hub = model_folder("good"), "model.tokenizer_args.pretrained_model_name_or_path=gpt2"
    (tmp_path / "empty").mkdir()
    assert found_with(base, f"{key}={good}", hub) == []
    cases = {
        tmp_path / "empty": "has no config.json",
        tmp_path: "did you mean one of its folders: good",
        good / "config.json": "is a file",
        Path("saves/unlearn/never"): "no such folder",
    }
    for path, words in cases.items():
        (found,) = found_with(base, f"{key}={path}", hub)
        assert words in found
    assert found_with(base, f"{key}=owner/name-on-the-hub", hub) == []
    (found,) = found_with(base, f"model.tokenizer_args.pretrained_model_name_or_path={tmp_path / 'empty'}")
    assert "not a folder with a tokenizer" in found


def test_evaluation_without_a_suite() -> None:
    (found,) = faults("task_name=x", "eval=null", name="eval")
    assert "eval=tofu" in found


def test_a_run_gets_what_validation_bound() -> None:
    cfg = load_config("unlearn", [*QUICK, "trainer=NPO", "trainer.method_args.beta=0.5", "retain=kl"])
    own = cfg.bound["trainer.method_args"]
    assert (own.handler, own.kwargs) == ("expunge.methods.npo:npo", {"beta": 0.5})
    assert (own.options["gamma"], own.options["alpha"]) == (1.0, 1.0)
    assert cfg.bound["trainer.method_args.retain"].handler == "expunge.methods.retain:kl"
    assert cfg.bound["data.forget.TOFU_QA_forget.args"].handler == "expunge.data.datasets:qa"


def test_describe(
    tofu_root: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """forget10 has 5 rows here, and the batch is 2 x 2.

    ceil(5 / 2) = 3 micro-batches, ceil(3 / 2) = 2 steps per epoch, 3 epochs = 6 steps.
    """
    overrides = [
        *QUICK,
        f"paths.data_root={tofu_root}",
        f"model.model_args.pretrained_model_name_or_path={model_folder('m')}",
        "trainer=NPO",
        "trainer.args.per_device_train_batch_size=2",
        "trainer.args.gradient_accumulation_steps=2",
        "trainer.args.num_train_epochs=3",
    ]
    facts = describe(load_config("unlearn", overrides))
    assert facts["rows"] == "5"
    assert facts["steps"].startswith("6 ")
    assert facts["effective batch"].startswith("4 ")
    assert facts["model"] == "34 parameters"
    assert "frozen reference" not in facts["memory"]
    assert "frozen reference" in describe(load_config("unlearn", [*overrides, "retain=kl"]))["memory"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    facts = describe(load_config("unlearn", overrides))
    assert (facts["effective batch"].split()[0], facts["steps"].split()[0]) == ("8", "3")


def test_describe_without_local_files(tmp_path: Path) -> None:
    facts = describe(load_config("unlearn", [*QUICK, f"paths.data_root={tmp_path}"]))
    assert facts["rows"] == facts["model"] == facts["memory"] == "unknown until downloaded"
    assert facts["steps"].startswith("unknown until downloaded")


@pytest.mark.parametrize(
    "hf_args",
    [
        {"path": "locuslab/TOFU", "name": "forget10", "split": "train"},
        {"path": "locuslab/TOFU", "name": "forget10", "split": "train[:2]"},
        {"path": "tofu", "name": "retain90"},
        {"path": "locuslab/TOFU", "split": "full"},
    ],
)
def test_local_files_are_those_of_the_data_room(tofu_root: Path, hf_args: dict[str, str]) -> None:
    from expunge.data.sources import Source, read_source

    rows, _, file = read_source(Source.of(hf_args), tofu_root)
    found = local_file(hf_args, tofu_root)
    assert found is not None
    assert found == file
    assert count_rows(found) == len(rows)
