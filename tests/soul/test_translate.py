from __future__ import annotations

import json
from pathlib import Path

import pytest
from soul_lines import FULL, ROOT, faults, line, loaded, short

from expunge.config.validate import load_config
from expunge.soul.methods import METHODS
from expunge.soul.translate import parser_of, translate

# The loss, the retain term, and the weights that SOUL's gamma of 1.5 becomes.
EXPECTED = {
    "FT": ("finetune:finetune", None, {}),
    "l1_sparse": ("l1_sparse:l1_sparse", None, {}),
    "GA": ("grad_ascent:grad_ascent", None, {}),
    "GA+FT": ("grad_diff:grad_diff", "retain:nll", {"gamma": 1.0, "alpha": 1.5}),
    "GA+KL": ("grad_diff:grad_diff", "retain:kl", {"gamma": 1.0, "alpha": 1.5}),
    "CL": ("cl:cl", None, {}),
    "CL+FT": ("cl:cl", "retain:nll", {"gamma": 1.0, "alpha": 1.5}),
    "CL+KL": ("cl:cl", "retain:kl", {"gamma": 1.0, "alpha": 1.5}),
    "RL": ("rl:rl", None, {}),
    "KL": ("forget_kl:forget_kl", None, {"gamma": 1.5}),
    "NPO": ("npo:npo", "none", {}),
    "NPO+FT": ("npo:npo", "retain:nll", {"gamma": 1.0, "alpha": 1.5}),
    "SimNPO+FT": ("simnpo:simnpo", "retain:nll", {"gamma": 1.0, "alpha": 1.5}),
    "GA_FT_epoch": ("grad_diff:grad_diff", "retain:nll", {"gamma": 1.0, "alpha": 1.5, "schedule": "ramp"}),
    "GA_KL_epoch": ("grad_diff:grad_diff", "retain:kl", {"gamma": 1.0, "alpha": 1.5, "schedule": "ramp"}),
    "CL_FT_epoch": ("cl:cl", "retain:nll", {"gamma": 1.0, "alpha": 1.5, "schedule": "ramp"}),
    "origin": None,
    "sys": None,
}


def test_the_methods_are_souls() -> None:
    assert set(METHODS) == set(EXPECTED)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_translates_composes_and_validates(method: str, data_root: Path) -> None:
    found = translate(line(method))
    cfg = loaded(found)
    assert cfg.get("paths.output_dir") == "files/logs/N"
    assert cfg.get("forget_split") == "forget10"
    assert "tofu" in cfg.get("eval")
    expected = EXPECTED[method]
    if expected is None:
        assert found.config_name == "eval"
        assert ("system_prompt_with_special_tokens" in cfg.get("model.template_args")) == (method == "sys")
        return
    handler, retain, weights = expected
    assert cfg.get("trainer.handler") == f"expunge.methods.{handler}"
    own = cfg.section("trainer.method_args")
    assert (own.pop("retain", {"handler": None})["handler"] or "none") == (
        "none" if retain in (None, "none") else f"expunge.methods.{retain}"
    )
    assert own == weights
    args = cfg.section("trainer.args")
    keys = (
        "learning_rate",
        "num_train_epochs",
        "weight_decay",
        "gradient_accumulation_steps",
        "per_device_train_batch_size",
        "warmup_steps",
    )
    assert [args[key] for key in keys] == [1e-4, 1, 0.1, 1, 4, 0.1]
    assert "warmup_epochs" not in args
    (node,) = cfg.section("data.forget").values()
    assert node["args"]["select"] == {"ratio": 4, "seed": 7}
    assert not cfg.get("trainer.optimizer")


BY_HAND = {
    ("GA+FT", 1): "trainer=GradDiff trainer.method_args.gamma=1.0 trainer.method_args.alpha=1.5 retain=nll "
    "optimizer=sophia trainer.optimizer.betas=[0.9,0.95] trainer.optimizer.rho=0.03",
    ("RL", 0): "trainer=GradAscent trainer.handler=expunge.methods.rl:rl "
    "data.forget.TOFU_QA_forget.handler=expunge.data.random_labels:qa_random_labels "
    "data.forget.TOFU_QA_forget.args.answers={TOFU_QA_retain:{handler:'expunge.data.datasets:qa',"
    "args:{hf_args:{path:locuslab/TOFU,name:retain90,split:train}}}}",
}


@pytest.mark.parametrize(("method", "sophia"), BY_HAND)
def test_the_config_equals_one_written_by_hand(method: str, sophia: int, data_root: Path) -> None:
    common = (
        "task_name=N paths.output_dir=files/logs/N run_layout=soul seed=0 model=soul "
        "model.model_args.pretrained_model_name_or_path=expunge/mini model.model_args.cache_dir=.cache "
        "model.tokenizer_args.cache_dir=.cache budget=soul eval=tofu "
        "eval.tofu.metrics.tofu_soul_ks.enabled=true forget_split=forget10 "
        "retain_split=retain90 trainer.args.learning_rate=1e-4 trainer.args.num_train_epochs=1 "
        "trainer.args.weight_decay=0.1 "
        "trainer.args.gradient_accumulation_steps=1 trainer.args.per_device_train_batch_size=4 "
        "trainer.args.report_to=none "
        "trainer.args.logging_steps=0.05 trainer.args.save_strategy=epoch trainer.args.save_total_limit=1 "
        "data.forget.TOFU_QA_forget.args.select={ratio:4,seed:7}"
    )
    by_hand = load_config("unlearn", [*common.split(), *BY_HAND[method, sophia].split()])
    translated = loaded(translate(line(method, sophia)))
    assert translated.tree == by_hand.tree
    assert translated.identity() == by_hand.identity()


# From difficulty.md, for Llama-2-7b on TOFU's forget10: method, lr, weight of the retain term, Sophia.
REFERENCE = {
    "FO_GradDiff": ("grad_diff", 5e-6, 0.3, False),
    "SO_GradDiff": ("grad_diff", 5e-6, 2.0, True),
    "FO_PO": ("cl", 2e-5, 1.0, False),
    "SO_PO": ("cl", 1e-5, 5.0, True),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_configurations(name: str, data_root: Path) -> None:
    cfg = loaded(translate(["--config_file", str(ROOT / "configs" / "soul" / "TOFU" / f"{name}.json")]))
    method, lr, alpha, sophia = REFERENCE[name]
    assert cfg.get("trainer.handler") == f"expunge.methods.{method}:{method}"
    assert cfg.get("trainer.method_args.alpha") == alpha
    args = cfg.section("trainer.args")
    assert args["learning_rate"] == lr
    assert (
        args["per_device_train_batch_size"],
        args["gradient_accumulation_steps"],
        args["num_train_epochs"],
    ) == (1, 4, 5)
    assert args["weight_decay"] == 0.1
    assert (cfg.get("trainer.optimizer.betas") == [0.9, 0.95]) == sophia
    assert cfg.get("model.template_args.user_start_tag") == "[INST] "


def test_all_reference_configurations_are_tested() -> None:
    assert {path.stem for path in (ROOT / "configs" / "soul").rglob("*.json")} == set(REFERENCE)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    content = {
        "overall": {"model_name": "M", "seed": 3},
        "unlearn": {
            "unlearn_method": "GA",
            "lr": 5e-6,
            "sophia": True,
            "task_name": "tofu",
            "GA+FT": {"gamma": 2},
        },
        "dataset": {"forget_dataset_name": "Tofu_forget10", "forget_ratio": 0.5, "self_retain": None},
    }
    path.write_text(json.dumps(content))
    found = translate(["--config-file", str(path), "--unlearn.lr", "2e-6", "--sophia", "0"])
    assert {"seed=3", "trainer.args.learning_rate=2e-06"} <= set(found.overrides)
    assert not [text for text in found.overrides if text.startswith("optimizer")]
    assert any("unlearn.GA+FT.gamma" in notice for notice in found.notices)
    path.write_text(json.dumps({"unlearn": {"lrr": 1}, "overall": {"model_name": "M"}}))
    assert [
        text
        for text in faults(["--config_file", str(path)])
        if "'unlearn.lrr'" in text and "unlearn.lr" in text
    ]
    assert "no such file" in faults(["--config_file", str(tmp_path / "none.json")])[0]


def test_the_commands_of_the_page_translate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = (ROOT / "docs" / "soul.md").read_text().split("```bash\n")[1:]
    lines = "".join(block.split("```")[0] for block in blocks).replace("\\\n", " ").splitlines()
    found = [
        translate(words[1:], Path(words[0]).stem)
        for words in (line[line.index("exec/") :].split() for line in lines)
    ]
    assert [each.config_name for each in found] == ["unlearn", "unlearn", "eval", "train"]


def test_undotted_and_valueless_flags_are_the_same() -> None:
    dotted = FULL.replace("--unlearn.use_lora 0", "--unlearn.use_lora 1").format(
        method="GA+FT", sophia=1, gamma="--unlearn.GA+FT.gamma 2"
    )
    undotted = (
        "--use_lora --sophia --model_name expunge/mini --cache_dir .cache --seed 0 --logger json "
        "--task_name tofu --unlearn_method GA+FT "
        "--num_epochs 1 --lr 1e-4 --weight_decay=0.1 --gradient_accumulation_steps 1 --gamma 2 "
        "--forget_dataset_name Tofu_forget10 "
        "--retain_dataset_name Tofu_retain90 --dataset_seed 7 --forget_ratio 4 --batch_size 4 --run_name N "
        "--log_root files/logs"
    )
    assert translate(dotted.split()).overrides == translate(undotted.split()).overrides


def test_a_namespace_is_translated_like_words(data_root: Path) -> None:
    assert translate(parser_of("unlearn_model").parse_args(line("GA"))) == translate(line("GA"))


def test_own_hyper_parameters() -> None:
    assert (
        "trainer.method_args.alpha_l1=1e-05"
        in translate([*short("l1_sparse"), "--unlearn.l1_sparse.alpha", "1e-5"]).overrides
    )
    assert "trainer.method_args.gamma=2" in translate([*short("KL"), "--unlearn.KL.gamma", "2"]).overrides
    with_gamma = translate([*short("NPO", beta="0.5"), "--unlearn.NPO.gamma", "3"])
    assert {"trainer=NPO_FT", "trainer.method_args.alpha=3", "trainer.method_args.beta=0.5"} <= set(
        with_gamma.overrides
    )
    assert {"trainer=NPO", "retain=none"} <= set(translate(short("NPO")).overrides)


def test_lora_is_new_or_continued(data_root: Path, tmp_path: Path) -> None:
    new = translate([*short(forget_ratio="1"), "--use_lora"])
    adapter = loaded(new).section("model.adapter")
    expected = {
        "type": "lora",
        "r": 8,
        "alpha": 32,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert {key: adapter[key] for key in expected} == expected
    folder = tmp_path / "tofu_lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "meta-llama/Llama-2-7b-chat-hf", "r": 4})
    )
    continued = translate([*short(model_name=str(folder)), "--use_lora", "1"])
    assert [text for text in continued.overrides if "adapter" in text] == ["model/adapter=lora"]
    assert "model=soul_llama2" in continued.overrides
    assert "is a LoRA adapter" in faults(short(model_name=str(folder)))[0]


def test_overrides_after_the_flags_win() -> None:
    found = translate(
        [
            *short(),
            "--sophia",
            "trainer.args.learning_rate=3e-3",
            "model=phi-1_5",
            "eval=null",
            "--lr",
            "1e-4",
        ]
    )
    assert found.overrides[-3:] == ("trainer.args.learning_rate=3e-3", "model=phi-1_5", "eval=null")
    assert "model=soul" not in found.overrides
    assert "optimizer=sophia" in found.overrides


def test_runs_that_only_evaluate(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    found = translate([*short("GA+FT"), "--unlearn.resume_path", str(folder), "--gamma", "1"])
    cfg = loaded(found)
    assert (found.config_name, cfg.get("mode"), cfg.get("task_name")) == ("eval", "eval", "checkpoints_eval")
    assert cfg.get("model.model_args.pretrained_model_name_or_path") == str(folder)
    assert translate(short("origin")).config_name == "eval"
