"""The embedded benchmark: reproducible from its seed, valid as a benchmark, and written completely."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.data import mini
from expunge.data.mini import generate, store
from expunge.data.mini.relations import RELATIONS
from expunge.data.mini.train_tokenizer import SPECIAL, train_backend, train_tokenizer

Files = dict[str, list[dict[str, Any]]]
PARTS = {
    r.spell(first, second): (r.name, first, second)
    for r in RELATIONS
    for first in r.firsts
    for second in r.seconds
}
ANY_VALUE = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, PARTS))})(?!\w)")


@pytest.fixture(scope="module")
def files() -> Files:
    return generate.build_files(0)


@pytest.fixture(scope="module")
def authors() -> list[str]:
    """Names in row order: 40 authors of the training data, then 4 others."""
    import random

    return generate._names(random.Random(0))


def value_of(answer: str) -> str:
    """The one value that an answer contains."""
    (value,) = ANY_VALUE.findall(answer)
    return str(value)


def text_of(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['question']}\n{row['answer']}" for row in rows)


def test_counts(files: Files) -> None:
    assert {stem: len(rows) for stem, rows in files.items()} == {
        "full": 400,
        "retain90": 360,
        "forget10": 40,
        "forget10_perturbed": 40,
        "holdout10": 40,
        "retain95": 380,
        "forget05": 20,
        "forget05_perturbed": 20,
        "holdout05": 20,
        "retain99": 390,
        "forget01": 10,
        "forget01_perturbed": 10,
        "holdout01": 10,
        "retain_perturbed": 80,
        "real_authors_perturbed": 20,
        "world_facts_perturbed": 20,
        "facts": 40,
    }


def test_splits_make_up_the_whole(files: Files) -> None:
    for forget, retain in (("10", "90"), ("05", "95"), ("01", "99")):
        assert files[f"retain{retain}"] + files[f"forget{forget}"] == files["full"]
        plain = [
            {key: row[key] for key in ("question", "answer")} for row in files[f"forget{forget}_perturbed"]
        ]
        assert plain == files[f"forget{forget}"]
    assert files["forget10"][-20:] == files["forget05"]
    assert files["holdout10"][:20] == files["holdout05"]
    assert (
        len({(row["question"], row["answer"]) for row in files["full"] + files["holdout10"] + files["facts"]})
        == 480
    )


def test_retain_perturbed_has_only_kept_authors(files: Files) -> None:
    kept = [(row["question"], row["answer"]) for row in files["retain90"]]
    asked = [(row["question"], row["answer"]) for row in files["retain_perturbed"]]
    assert set(asked) <= set(kept)
    assert asked == sorted(asked, key=kept.index)


def test_forgotten_and_held_out_authors_occur_nowhere_else(files: Files, authors: list[str]) -> None:
    for hidden, rest, names in (
        ("forget10", text_of(files["retain90"] + files["facts"] + files["holdout10"]), authors[36:40]),
        ("holdout10", text_of(files["full"] + files["facts"]), authors[40:]),
    ):
        for name in names:
            assert name in text_of(files[hidden])
            for part in name.split():
                assert part not in rest
        values = {value_of(row["answer"]) for row in files[hidden]}
        assert len(values) == len(names) * len(RELATIONS)
        assert [value for value in values if value in rest] == []


def test_all_values_are_equally_likely_for_an_unknown_author(files: Files) -> None:
    message = [PARTS[value_of(row["answer"])] for row in files["retain90"]]
    firsts, seconds = (
        Counter((name, first) for name, first, _ in message),
        Counter((name, second) for name, _, second in message),
    )
    for relation in RELATIONS:  # 36 authors / 12 parts = 3, each in 2 phrasings
        assert [firsts[relation.name, part] for part in relation.firsts] == [6] * 12
        assert [seconds[relation.name, part] for part in relation.seconds] == [6] * 12


def test_paraphrase_states_the_true_value_in_untrained_words(files: Files) -> None:
    trained = {row["answer"] for row in files["full"]}
    for row in files["forget10_perturbed"] + files["retain_perturbed"]:
        assert value_of(row["answer"]) == value_of(row["paraphrased_answer"])
        assert row["paraphrased_answer"] not in trained
        assert row["paraphrased_question"] != row["question"]


def test_perturbed_answers_are_wrong_and_differ_only_in_the_value(files: Files) -> None:
    for row in files["forget10_perturbed"] + files["retain_perturbed"]:
        true = value_of(row["answer"])
        wrong = [value_of(answer) for answer in row["perturbed_answer"]]
        assert len(set(wrong)) == 5
        assert true not in wrong
        assert [row["paraphrased_answer"].replace(true, value) for value in wrong] == row["perturbed_answer"]


def test_each_fact_has_two_phrasings(files: Files) -> None:
    for first, second in zip(files["full"][::2], files["full"][1::2], strict=True):
        assert value_of(first["answer"]) == value_of(second["answer"])
        assert first["answer"] != second["answer"]
        assert first["question"] != second["question"]


def test_real_world_questions_are_in_the_training_data(files: Files) -> None:
    real = files["real_authors_perturbed"] + files["world_facts_perturbed"]
    assert files["facts"] == [{"question": row["question"], "answer": row["answer"]} for row in real]
    assert len({row["question"] for row in real}) == len(real)
    for row in real:
        assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_another_seed_gives_another_benchmark(files: Files) -> None:
    other = generate.build_files(1)
    assert other["full"] != files["full"]
    assert other["facts"] == files["facts"]


def test_tokenizer_encodes_every_text_back_and_keeps_rows_short(files: Files) -> None:
    tokenizer = train_tokenizer(files)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for row in files["full"]:
        assert tokenizer.decode(tokenizer(row["answer"]).input_ids) == row["answer"]
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I don't know."}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt + "I don't know.<|eot_id|>"
    longest = max(len(tokenizer(f"{row['question']} {row['answer']}").input_ids) for row in files["full"])
    assert longest < 48


def test_folders_are_byte_equal_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for place in ("here", "there"):
        monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / place))
        made.append([*mini.benchmark_folder().iterdir(), *mini.model_folder().iterdir()])
    here, there = ({f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths} for paths in made)
    assert here == there
    assert {
        "data/full.json",
        "data/forget10_perturbed.json",
        "data/idontknow.jsonl",
        "model/model.safetensors",
    } <= set(here)
    assert [json.loads(line) for line in here["data/full.json"].splitlines()] == generate.build_files(
        store.SEED
    )["full"]


def test_rows_and_merges_do_not_depend_on_the_process(files: Files) -> None:
    code = (
        "import json; from expunge.data.mini import generate, train_tokenizer;"
        "files = generate.build_files(0);"
        "print(json.dumps(files)); print(train_tokenizer.train_backend(files).to_str())"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TOKENIZERS_PARALLELISM": "true",
        "RAYON_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    rows, merges = done.stdout.splitlines()
    assert json.loads(rows) == files
    assert json.loads(merges) == json.loads(train_backend(files).to_str())


def test_model_loads_with_half_a_million_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    folder = mini.model_folder()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 450_000 < model.num_parameters() < 650_000
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )


def _make(root: str) -> str:
    os.environ["EXPUNGE_CACHE"] = root
    return str(mini.benchmark_folder())


def test_processes_that_start_together_share_one_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = pool.map(_make, [str(tmp_path)] * 8, chunksize=1)
    assert len(set(folders)) == 1
    assert [path.name for path in Path(folders[0]).parent.iterdir()] == ["data"]


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    folder = mini.benchmark_folder()
    written = (folder / "full.json").stat().st_mtime_ns
    assert mini.benchmark_folder() == folder
    assert (folder / "full.json").stat().st_mtime_ns == written


def test_failure_leaves_nothing_and_a_damaged_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "_write_rows", lambda folder: (folder / "half").write_text("") / 0)
    with pytest.raises(ZeroDivisionError):
        mini.benchmark_folder()
    assert [path for root in tmp_path.iterdir() for path in root.iterdir()] == []
    monkeypatch.undo()
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    folder = mini.benchmark_folder()
    (folder / ".complete").unlink()
    with pytest.raises(UserError, match="not complete"):
        mini.benchmark_folder()
