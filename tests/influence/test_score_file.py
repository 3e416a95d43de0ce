from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.influence.row_scores import Difficulty, score_rows
from expunge.influence.score_file import (
    SCHEMA,
    gradient_path,
    meta_path,
    read_scores,
    rows_fingerprint,
    sha256_of,
    write_scores,
)

THETA = "body.theta"
MODEL = {"name": "tiny", "adapter_sha256": None, "dtype": "float32", "fingerprint": "f"}
DATASET = {
    "name": "D",
    "subset": "forget10",
    "split": "train",
    "n_total": 9,
    "dataset_seed": 3,
    "forget_ratio": 7,
}


@pytest.fixture
def scored(by_hand: tuple[Any, list[Encoded]]) -> tuple[Difficulty, list[Encoded]]:
    model, encoded = by_hand
    return score_rows(model, encoded, params=THETA), encoded


def write(path: Path, scored: tuple[Difficulty, list[Encoded]], **more: Any) -> Path:
    return write_scores(path, *scored, model=MODEL, dataset=DATASET, seed=5, **more)


@pytest.mark.parametrize("name", ["difficulty_scores.json", "scores.jsonl"])
def test_what_is_written_is_read(name: str, scored: tuple[Difficulty, list[Encoded]], tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / name, scored)
    found, encoded = read_scores(path), scored[1]
    assert found.by_uid == {item.uid: item.score for item in scored[0].items}
    assert found.model == {**MODEL, "attention": "eager"}
    assert found.dataset == {**DATASET, "n_scored": 3, "fingerprint": rows_fingerprint(encoded)}
    scorer = {
        "loss": "nll",
        "reduction": "token_mean",
        "epoch_grad_mode": "frozen",
        "params": THETA,
        "algorithm": "jvp",
    }
    assert found.scorer == {**scorer, "signed": False, "seed": 5}
    assert list(found.items[0]) == ["uid", "row", "n_tokens", "loss", "projection", "score"], (
        "no norm: jvp does not compute it"
    )
    g = load_file(gradient_path(path))
    torch.testing.assert_close(g[THETA], torch.tensor([-1 / 6, 0.0]))
    norm = scored[0].norm
    assert found.epoch_grad == {
        "norm": norm,
        "path": gradient_path(path).name,
        "sha256": sha256_of(gradient_path(path)),
        "n_params": 2,
    }
    assert found.sha256 == sha256_of(path)
    found.check_rows(encoded[::-1])
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(
        {path.name, gradient_path(path).name, *([meta_path(path).name] if path.suffix == ".jsonl" else [])}
    )


def test_norms_are_written_if_known_and_the_gradient_may_be_left_out(by_hand: Any, tmp_path: Path) -> None:
    found = score_rows(*by_hand, params=THETA, algorithm="naive")
    path = write(tmp_path / "d.json", (found, by_hand[1]), save_gradient=False)
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA
    assert all(item["grad_norm"] > 0 and abs(item["cosine"]) <= 1 for item in content["items"])
    assert (content["epoch_grad"]["path"], content["epoch_grad"]["sha256"]) == (None, None)
    assert not gradient_path(path).exists()


def test_scores_of_other_rows_are_refused(scored: tuple[Difficulty, list[Encoded]], tmp_path: Path) -> None:
    found, encoded = read_scores(write(tmp_path / "d.json", scored)), scored[1]
    with pytest.raises(UserError, match="1 of its rows are not in the forget set, such as row2") as error:
        found.check_rows(encoded[:2])
    assert "expunge score" in str(error.value)
    with pytest.raises(UserError, match="1 of the forget rows have no score, such as other"):
        found.check_rows([*encoded, replace(encoded[0], row_id="other")])
    with pytest.raises(UserError, match="the same rows but with other tokens"):
        found.check_rows([replace(encoded[0], input_ids=(1, 0)), *encoded[1:]])
    assert rows_fingerprint(encoded) == rows_fingerprint(encoded[::-1])
    assert rows_fingerprint(encoded) != rows_fingerprint(
        [replace(encoded[2], label_mask=(False, True, False)), *encoded[:2]]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content.update(schema="expunge.difficulty/9"),
            "has the schema 'expunge.difficulty/9'",
        ),
        (lambda content: content.pop("items"), "is not a file of difficulty scores"),
        (lambda content: content.pop("scorer"), "is not a file of difficulty scores"),
        (lambda content: content["items"][0].pop("score"), "is not a file of difficulty scores"),
        (lambda content: content["items"][0].update(score=None), "is not a file of difficulty scores"),
        (lambda content: content["items"].pop(), "is damaged"),
        (lambda content: content["items"][0].update(uid="row1"), "is damaged"),
    ],
)
def test_damaged_files_are_refused(
    change: Callable[[dict[str, Any]], object],
    said: str,
    scored: tuple[Difficulty, list[Encoded]],
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "d.json", scored)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_scores(path)


def test_files_that_are_not_score_files(scored: tuple[Difficulty, list[Encoded]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file") as error:
        read_scores(tmp_path / "none.json")
    assert "expunge score" in str(error.value)
    (tmp_path / "text.json").write_text("scores")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_scores(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a file of difficulty scores"):
        read_scores(tmp_path / "list.json")
    with pytest.raises(UserError, match=r"a \.json or a \.jsonl file"):
        write(tmp_path / "scores.pt", scored)
