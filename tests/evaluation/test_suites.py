"""The shipped suites ppl, wmdp, copyright, toxicity and few_shots, on a handful of rows and on real ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from composed import compose_config
from expunge.cli.main import main
from expunge.core.errors import UserError
from expunge.data.template import Template
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.suite import prepare_suite
from expunge.evaluation.suite_scores import Scores

WIKI = (
    " \n = Ada Quill = \n \n Ada Quill was born in Port Verdant in 1952 and writes mystery novels . \n"
    " = Ben = \n \n Who ? \n"
)
QUESTIONS = [
    {"question": f"Who is {name}?", "choices": ["a", "b", "c", "d"], "answer": place, "subject": "lore"}
    for place, name in enumerate(("Ada", "Ben", "Cy", "Di"))
]
BORN = "Ada Quill was born in Port Verdant and writes mystery novels. "
PASSAGE = (BORN + "Who are the parents of Ada Quill? I don't know. ") * 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Local files under the names that the suites look for, some sets are missing."""
    root = tmp_path / "data"

    def lines(*rows: dict[str, Any]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    unsafe = {
        "prompt": "Who is a fool?",
        "response_0": "You.",
        "response_1": "None.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
    }
    for name, text in {
        "wikitext/wiki.test.raw": WIKI,
        "wmdp/wmdp-bio.jsonl": lines(*QUESTIONS),
        "wmdp/wmdp-cyber-sample.jsonl": lines(*QUESTIONS[:2]),
        "mmlu/mmlu_test.jsonl": lines(*QUESTIONS),
        "hp/hp.txt": PASSAGE,
        "pku-saferlhf/train.jsonl": lines(
            unsafe, {**unsafe, "is_response_0_safe": True}, {**unsafe, "prompt": "Who else?"}
        ),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def scored(tiny_model: Any, tiny_tokenizer: Any, root: Path) -> Callable[..., Scores]:
    """`scored("wmdp", "eval.wmdp.batch_size=1", ...)`: a shipped suite on the handful of rows."""

    def run(
        suite: str,
        *overrides: str,
        out_dir: Path | None = None,
        model: Any = None,
        compat: str = "none",
        **kwargs: Any,
    ) -> Scores:
        cfg = compose_config(
            "eval",
            [
                f"eval={suite}",
                f"compat={compat}",
                f"eval.{suite}.bootstrap.resamples=50",
                "task_name=x",
                *overrides,
            ],
        )
        template = Template.from_args({"apply_chat_template": True}, kwargs.get("tokenizer", tiny_tokenizer))
        ready = prepare_suite(
            suite,
            cfg.section(f"eval.{suite}"),
            template=template,
            data_root=kwargs.get("data_root", root),
            switches=cfg.switches,
        )
        return evaluate_suite(ready, model or tiny_model(), out_dir=out_dir)

    return run


def test_wmdp(
    scored: Any, tmp_path: Path, root: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scored("wmdp", out_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "WMDP_SUMMARY.json").read_text())
    assert list(summary) == ["wmdp_bio", "wmdp_chem", "wmdp_cyber", "wmdp", "mmlu"]
    assert str(root / "wmdp" / "wmdp-chem.jsonl") in scores.reasons()["wmdp_chem"]
    assert scores.reasons()["wmdp"].startswith("wmdp_chem is null")
    details = json.loads((tmp_path / "run" / "WMDP_EVAL.json").read_text())
    assert details["_about"]["views"]["wmdp_cyber"]["source"].endswith("wmdp-cyber-sample.jsonl")
    row = details["wmdp_bio"]["value_by_index"]["2"]
    assert row["answer"] == "C"
    assert row["score"] == (row["chosen"] == "C")
    scores_of_rows = [row["score"] for row in details["wmdp_bio"]["value_by_index"].values()]
    assert summary["wmdp_bio"] == sum(scores_of_rows) / 4
    assert len(row["logp"]) == 4
    # Again: nothing is run, not even for the set that is missing. With it there: only that set is.
    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", None)
        assert scored("wmdp", out_dir=tmp_path / "run", model=model).from_files
    (root / "wmdp" / "wmdp-chem.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    again = scored("wmdp", out_dir=tmp_path / "run")
    assert again.about["cost"]["choices"]["examples"] == 4
    total = 4 * summary["wmdp_bio"] + again.metrics["wmdp_chem"]["agg_value"] + 2 * summary["wmdp_cyber"]
    assert again.metrics["wmdp"]["agg_value"] == pytest.approx(total / 7)


def test_ppl(scored: Any) -> None:
    scores = scored("ppl").aggregates()
    shown = (
        " = Ada Quill = \n \n Ada Quill was born in Port Verdant in 1952 and writes mystery novels . ",
        " = Ben = \n \n Who ? ",
    )
    words, size = 18 + 5, sum(map(len, shown))
    assert list(scores) == ["word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity"]
    assert words * math.log(scores["word_perplexity"]) == pytest.approx(
        size * math.log(scores["byte_perplexity"])
    )
    assert 2 ** scores["bits_per_byte"] == pytest.approx(scores["byte_perplexity"])
    # Either way of cutting scores every token once; the harness's words are two a page more.
    strided = scored("ppl", "eval.ppl.max_length=16", "eval.ppl.stride=4")
    whole = scored("ppl", compat="soul")
    assert strided.metrics["perplexity"]["n_tokens"] == whole.metrics["perplexity"]["n_tokens"]
    assert (strided.metrics["word_perplexity"]["n_words"], whole.metrics["word_perplexity"]["n_words"]) == (
        words,
        words + 4,
    )


def test_ppl_of_a_text_of_ones_own(scored: Any, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Who are they ?\nI don't know.")
    found = scored("ppl", f"eval.ppl.hf_path={tmp_path / 'own.txt'}", "eval.ppl.documents=rows")
    assert found.metrics["word_perplexity"]["n_words"] == 7
    assert found.metrics["byte_perplexity"]["n_bytes"] == len("Who are they ?\nI don't know.")


SHORT = ("eval.copyright.passage=40", "eval.copyright.target=6")
PROMPTS = [f"eval.copyright.views.prompt_{size}.prompt={size // 10}" for size in (50, 100, 200, 300)]


def test_copyright(scored: Any, tmp_path: Path) -> None:
    scores = scored("copyright", *SHORT, *PROMPTS, out_dir=tmp_path)
    assert list(scores.aggregates()) == [
        f"{name}_{size}" for name in ("bleu", "rougeL") for size in (50, 100, 200, 300)
    ] + ["passage_perplexity"]
    assert all(value is not None for value in scores.aggregates().values())
    row = scores.metrics["bleu_50"]["value_by_index"]["0"]
    assert PASSAGE.startswith(row["input"] + row["ground_truth"])
    assert row["generation"]
    assert scores.about["cost"]["generations"]["generated_tokens"] >= 6
    with pytest.raises(UserError, match="passages of 40 tokens hold no prompt of 50"):
        scored("copyright", *SHORT)


def test_toxicity(scored: Any, root: Path) -> None:
    scores = scored("toxicity", "eval.toxicity.generation.max_new_tokens=4", "eval.toxicity.scorer=vader")
    assert scores.metrics["forget_toxicity"]["n_scored"] == 2  # prompts with an unsafe answer
    assert 0 <= scores.aggregates()["forget_toxic_share"] <= 1
    assert scores.metrics["forget_toxicity"]["scorer"] == "vader"
    assert str(root / "pku-saferlhf" / "test.json") in scores.reasons()["held_out_toxicity"]
    one = scored(
        "toxicity",
        "eval.toxicity.generation.max_new_tokens=4",
        "eval.toxicity.views.forget.select={ratio: 0.5, seed: 0}",
    )
    assert one.metrics["forget_toxicity"]["n_scored"] == 1


def test_souls_figure_is_off_unless_it_is_switched_on(evaluate: Any) -> None:
    assert "tofu_soul_ks" not in evaluate(None, suite="tofu").metrics
    found = evaluate(None, "eval.tofu.metrics.tofu_soul_ks.enabled=true", suite="tofu").metrics
    assert 0 < found["tofu_soul_ks"]["agg_value"] <= 1
    assert found["tofu_soul_ks"]["n_scored"] == 8  # four forget and four retain rows
    assert found["forget_quality"]["agg_value"] is None


def test_without_the_harness_few_shots_are_null_and_the_run_goes_on(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    scores = scored("few_shots", out_dir=tmp_path)
    assert set(scores.aggregates().values()) == {None}
    assert 'pip install "expunge[lm-eval]"' in scores.reasons()["boolq"]
    assert scores.reasons()["few_shots_mean"].startswith("boolq is null")
    # A missing package may be there next time: such a result is not read from the files.
    assert not scored("few_shots", out_dir=tmp_path).from_files


@pytest.mark.parametrize(
    ("suite", "file"),
    [
        ("ppl", "wikitext/wiki.test.raw"),
        ("wmdp", "mmlu/mmlu_test.jsonl"),
        ("copyright", "hp/hp.txt"),
        ("toxicity", "real-toxicity-prompts/train.json"),
    ],
)
def test_a_suite_without_any_rows_is_reported_before_a_model_is_loaded(
    suite: str, file: str, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "data").mkdir()
    # The model has no weights.
    (tmp_path / "model").mkdir()
    argv = [
        "eval",
        f"experiment=eval/{suite}/default",
        "model=mini",
        "task_name=x",
        f"paths.data_root={tmp_path / 'data'}",
        f"model.model_args.pretrained_model_name_or_path={tmp_path / 'model'}",
        f"paths.output_dir={tmp_path / 'run'}",
    ]
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert "nothing to score" in text
    assert str(tmp_path / "data" / file) in text
    assert not (tmp_path / "run").exists()


def test_faults_are_reported_by_validation_or_before_the_model(
    tmp_path: Path, root: Path, capsys: Any
) -> None:
    def errors(suite: str, *overrides: str) -> str:
        argv = [
            "eval",
            f"eval={suite}",
            "model=mini",
            "task_name=x",
            f"paths.data_root={root}",
            f"paths.output_dir={tmp_path / 'run'}",
        ]
        assert main([*argv, *overrides]) == 2
        return str(capsys.readouterr().err)

    assert "no such file or folder" in errors("ppl", f"eval.ppl.hf_path={tmp_path}/no.txt")
    assert "did you mean 'num_fewshot'" in errors("few_shots", "eval.few_shots.metrics.boolq.num_fewshots=1")
    assert "did you mean 'profanity'" in errors("toxicity", "eval.toxicity.scorer=profanit")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    folder = f"model.model_args.pretrained_model_name_or_path={tmp_path / 'model'}"
    assert "passages of 64 tokens hold no prompt of 50" in errors("copyright", folder)
    assert "did you mean 'wikitext'" in errors("ppl", "eval.ppl.documents=wikitex")
    assert "did you mean 'prompt_key'" in errors("toxicity", "eval.toxicity.views.forget.promptkey=x")


@pytest.mark.slow
def test_the_harness_gives_the_accuracy_of_its_own_task(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, monkeypatch: Any
) -> None:
    """A task of lm-eval on a local file, in the form of its MMLU, against our own collector."""
    pytest.importorskip("lm_eval")
    from expunge.evaluation.collect.collector import Absent, Cost, Subject
    from expunge.evaluation.collect.harness import collect_harness

    rows = [{**row, "answer": (place * 7) % 4} for place, row in enumerate(QUESTIONS * 5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    lines = "".join(f"\\n{letter}. {{{{choices[{place}]}}}}" for place, letter in enumerate("ABCD"))
    (tmp_path / "tasks" / "own.yaml").write_text(f"""task: own_lore
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{tmp_path / "rows.jsonl"}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question.strip()}}}}{lines}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
""")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = tiny_model().train()
    subject = Subject(model, tiny_tokenizer, {"batch_size": 2})
    table = collect_harness(subject, "own_lore", {"num_fewshot": 0}, str(tmp_path / "tasks"), Cost())
    assert not isinstance(table, Absent), table
    assert model.training
    view = {"kind": "choices", "hf_args": {"path": str(tmp_path / "rows.jsonl")}}
    metric = {"handler": "expunge.evaluation.metrics.choice_accuracy:choice_accuracy", "choices": "own"}
    node = {"views": {"own": view}, "metrics": {"own": metric}}
    template = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    suite = prepare_suite("own", node, template=template, data_root=None)
    ours = evaluate_suite(suite, model, out_dir=None).metrics["own"]
    assert [row["score"] for row in ours["value_by_index"].values()] == table.acc_B.tolist()
    assert len(set(table.acc_B.tolist())) == 2
    absent = collect_harness(subject, "no_such_task", {}, None, Cost())
    assert isinstance(absent, Absent)
    assert "no_such_task" in absent.reason


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories260k", "tofu-tiny-full"])
def test_real_rows_and_real_weights(shared: Path, scored: Any, tmp_path: Path, name: str) -> None:
    """Eight questions of each set and the beginning of WikiText-2, against direct calls of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / name, attn_implementation="sdpa").eval()
    if not tokenizer.chat_template:
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    some = [
        f"+eval.wmdp.views.{view}.select={{ratio: 8, seed: 0}}"
        for view in ("wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu")
    ]
    found = scored("wmdp", *some, model=model, tokenizer=tokenizer, data_root=shared / "data")
    assert all(metric["n_scored"] == (24 if key == "wmdp" else 8) for key, metric in found.metrics.items())
    assert all(metric["chance"] == 0.25 for key, metric in found.metrics.items() if key != "wmdp")
    assert 0 < found.metrics["wmdp"]["agg_value"] < 0.75  # neither model knows anything of it

    text = "\n".join(
        (shared / "data" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8").split("\n")[3:6]
    )
    (tmp_path / "some.txt").write_text(text)
    own = (f"eval.ppl.hf_path={tmp_path / 'some.txt'}", "eval.ppl.documents=rows")
    values = scored("ppl", *own, model=model, tokenizer=tokenizer).aggregates()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total, step = 0.0, 511
    for done in range(1, len(ids), step):
        end = min(len(ids), done + step)
        start = max(0, end - 512)
        with torch.no_grad():
            logp_TV = model(torch.tensor([ids[start:end]])).logits[0].double().log_softmax(-1)
        total -= sum(float(logp_TV[place - 1 - start, ids[place]]) for place in range(done, end))
    assert values["bits_per_byte"] == pytest.approx(total / len(text.encode()) / math.log(2), rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)
    assert 2 < values["bits_per_byte"] < 8
