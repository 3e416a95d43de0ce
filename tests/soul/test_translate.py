from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.soul.main import script
from expunge.soul.methods import METHODS
from expunge.soul.translate import SCRIPTS, SoulCommand, parser_of, translate
from expunge.soul.unlearning import SUITES

ROOT = Path(__file__).resolve().parents[2]
FULL = (
    "--overall.model_name expunge/mini --overall.cache_dir .cache --overall.seed 0 --overall.logger json "
    "--unlearn.task_name tofu "
    "--unlearn.unlearn_method {method} --unlearn.num_epochs 1 --unlearn.lr 1e-4 --unlearn.weight_decay 0.1 "
    "--unlearn.gradient_accumulation_steps 1 --unlearn.sophia {sophia} --unlearn.sophia_params.betas_low 0.9 "
    "--unlearn.sophia_params.betas_high 0.95 --unlearn.sophia_params.rho 0.03 --unlearn.use_lora 0 "
    "--unlearn.compute_difficulty_only 0 "
    "--unlearn.enable_difficulty_sampling 0 --unlearn.difficulty_order asc {gamma} "
    "--dataset.forget_dataset_name Tofu_forget10 "
    "--dataset.retain_dataset_name Tofu_retain90 --dataset.dataset_seed 7 --dataset.forget_ratio 4 "
    "--dataset.self_retain 0 "
    "--dataset.batch_size 4 --logger.name N --logger.json.root files/logs"
)
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


def line(method: str, sophia: int = 0) -> list[str]:
    gamma = f"--unlearn.{method}.gamma 1.5" if METHODS[method].required else ""
    return FULL.format(method=method, gamma=gamma, sophia=sophia).split()


def short(method: str = "GA", **more: str) -> list[str]:
    flags = {
        "model_name": "M",
        "task_name": "tofu",
        "unlearn_method": method,
        "forget_dataset_name": "Tofu_forget10",
        **more,
    }
    return [word for name, value in flags.items() if value for word in (f"--{name}", value)]


def loaded(found: SoulCommand) -> Config:
    return load_config(found.config_name, found.overrides)


def faults(argv: list[str], name: str = "unlearn_model") -> list[str]:
    with pytest.raises(UserError) as caught:
        translate(argv, name)
    return [str(fault) for fault in caught.value.faults]


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


TASKS = {
    "tofu": ["tofu"],
    "wmdp": ["ppl", "few_shots", "wmdp"],
    "hp": ["ppl", "few_shots", "copyright"],
    "copyright": ["ppl", "few_shots", "copyright"],
    "toxic": ["ppl", "few_shots", "toxicity"],
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_validates_its_suites(task: str, data_root: Path, write_rows: Any) -> None:
    texts = write_rows(data_root.parent / "book.jsonl", [{"text": "Ada writes."}])
    answers = write_rows(data_root.parent / "chat.jsonl", [{"prompt": "Who?", "response": "You."}] * 9)
    name = {"tofu": "Tofu_forget10", "hp": str(texts), "toxic": str(answers)}.get(task, "SafePku")
    flags = [*short(task_name=task, forget_dataset_name=name), "--forget_ratio", "4", "--dataset_seed", "7"]
    cfg = loaded(translate(flags))
    assert list(cfg.section("eval")) == TASKS[task]
    assert bool(cfg.get("eval.tofu.metrics.tofu_soul_ks.enabled")) == (task == "tofu")
    if task == "hp":
        assert cfg.get("eval.copyright.views.prompt_50.hf_args.path") == str(texts)
    if task == "toxic":
        # The prompts are those of the forgotten rows: the same selection with the same seed.
        view, (node,) = cfg.get("eval.toxicity.views.forget"), cfg.section("data.forget").values()
        assert view["select"] == node["args"]["select"] == {"ratio": 4, "seed": 7}
        assert view["hf_args"]["path"] == node["args"]["hf_args"]["path"] == str(answers)
        assert (view["prompt_key"], view["reshape"], view["count"]) == ("prompt", None, None)


def test_the_prompts_of_safe_pku_are_those_of_the_rows_that_are_forgotten() -> None:
    overrides = translate(short(task_name="", forget_dataset_name="SafePku")).overrides
    assert "eval=[ppl,few_shots,toxicity]" in overrides  # the default task is toxic
    assert "eval.toxicity.views.forget.select={ratio:200,seed:0}" in overrides
    assert not any("reshape" in text or "hf_args" in text for text in overrides if text.startswith("eval."))


def test_a_task_without_its_suite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "copyright", ("ppl", "mia_svc"))
    argv = short(task_name="hp", forget_dataset_name="SafePku")
    assert "--unlearn.task_name hp: this version has no evaluation mia_svc" in faults(argv)[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--unlearn.unlern_method", "GA"],
            "unknown flag --unlearn.unlern_method\n  -> did you mean --unlearn.unlearn_method?",
        ),
        (short("GA-FT"), "unknown method 'GA-FT'\n  -> did you mean 'GA+FT'?"),
        (
            short(forget_dataset_name="Tofu-forget10"),
            "unknown dataset 'Tofu-forget10'\n  -> did you mean 'Tofu_forget10'?",
        ),
        (short("origin", forget_dataset_name="WMDPBios"), "did you mean 'WMDPBio'?"),
        (short(logger="jsn"), "did you mean 'json'?"),
        (short("GA+FT"), "GA+FT needs --unlearn.GA+FT.gamma"),
        (short("KL"), "KL needs --unlearn.KL.gamma"),
        (short("CL_FT_epoch"), "CL_FT_epoch needs"),
        ([*short("KL"), "--gamma", "1", "--unlearn.KL.gamma", "2"], "differ"),
        (short("GA", gamma="1"), "GA has no gamma"),
        (short(lr="fast"), "'fast' is not a number"),
        (short(lr="nan"), "is not a finite number"),
        (short(seed="1.5"), "is not a whole number"),
        (short(sophia="maybe"), "is not 0 or 1"),
        ([*short(), "--lr"], "--unlearn.lr is given without a value"),
        ([*short(), "stray"], "'stray' is neither a flag nor the value of one"),
        (short(model_name=""), "--overall.model_name is not given"),
        (short(forget_ratio="2.5"), "must be a count of rows (a whole number above 1)"),
        (short(forget_ratio="0"), "or a share (above 0, at most 1)"),
        ([*short(forget_ratio="1"), "--self_retain"], "no rows are left to keep"),
        (short(forget_dataset_name="HP"), "HP is not TOFU"),
        (short("GA+FT", gamma="1", retain_dataset_name="none"), "GA+FT reads retain rows"),
        (short("CL", forget_dataset_name="C4"), "rows are texts without questions"),
        (short("RL", retain_dataset_name="wikitext"), "RL draws answers from the retain rows"),
        (short(forget_dataset_name="WMDPALL"), "a count cannot be split over 2 datasets"),
        (short(forget_dataset_name="./nowhere.jsonl"), "no such file"),
    ],
)
def test_what_is_refused(argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(said in text for text in faults(argv)), faults(argv)


def test_all_faults_are_reported_together_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("unlearn_model", [*short("GA+FT", lr="x"), "--nunlearn.lr", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: 3 things are wrong")


FINETUNE = (
    "--model_name expunge/mini --cache_dir .cache --epochs 3 --batch_size 2 --gradient_accumulation_steps "
    "8 --lr 1e-4 "
)
LORA = "--lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --save_dir files/models/tofu_lora"


@pytest.mark.parametrize(
    ("name", "more", "data"),
    [
        ("Fine_tune_tofu", "--subset full", ["TOFU_QA_full"]),
        ("Fine_tune_hp", "", ["HP_QA", "HP_text"]),
        ("Fine_tune_wmdp", "--domain all --subset retain", ["WMDP_bio_retain", "WMDP_cyber_retain"]),
    ],
)
def test_finetuning(name: str, more: str, data: list[str], data_root: Path) -> None:
    (data_root / "hp").mkdir()
    for stem in ("hp", "hp_qa"):
        (data_root / "hp" / f"{stem}.jsonl").write_text('{"text": "x", "prompt": "x", "response": "x"}\n')
    cfg = loaded(translate(shlex.split(FINETUNE + more + " " + LORA), name))
    assert cfg.get("mode") == "finetune"
    assert list(cfg.section("data.train")) == data
    assert cfg.get("paths.output_dir") == "files/models/tofu_lora"
    adapter = cfg.section("model.adapter")
    assert (adapter["type"], adapter["r"], adapter["alpha"], adapter["dropout"]) == ("lora", 8, 16, 0.05)
    keys = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate")
    assert [cfg.get(f"trainer.args.{key}") for key in keys] == [3, 2, 8, 1e-4]
    assert not cfg.get("eval")


def test_finetuning_without_an_adapter_and_on_another_subset() -> None:
    found = translate(
        shlex.split("--model_name M --save_dir out --lora_r 0 --subset retain90"), "Fine_tune_tofu"
    )
    assert not [text for text in found.overrides if "adapter" in text]
    assert {"data/datasets@data.train=TOFU_QA_retain", "retain_split=retain90"} <= set(found.overrides)
    both = translate(shlex.split("--model_name M --save_dir out"), "Fine_tune_wmdp")
    assert "data/datasets@data.train=[WMDP_cyber_forget,WMDP_cyber_retain]" in both.overrides
    assert len(faults(["--subst", "x"], "Fine_tune_tofu")) == 3
    assert (
        "did you mean 'bio'"
        in faults(["--model_name", "M", "--save_dir", "o", "--domain", "boi"], "Fine_tune_wmdp")[0]
    )


def test_every_script_exists_twice_and_its_help_needs_no_torch(tmp_path: Path) -> None:
    paths = [
        str(folder / f"{name}.py") for folder in (ROOT / "exec", ROOT / "src" / "exec") for name in SCRIPTS
    ]
    code = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    shown = io.StringIO()
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    assert "--model_name" in shown.getvalue(), path
heavy = [name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_torch_is_not_loaded_before_a_fault_is_reported(tmp_path: Path) -> None:
    code = """
import sys
from expunge.soul.main import script
code = script("unlearn_model", sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
    argv: list[Any] = [*short(model_name="./nowhere"), "--forget_ratio", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, "no such folder" in done.stderr) == (2, True), done.stderr
