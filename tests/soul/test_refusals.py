"""The refusals of CL and similar methods: the user's file, SOUL's files, or the lines of the package."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge.config.validate import load_config
from expunge.core.errors import UserError
from expunge.data.refusals import OWN, refusal_lines
from expunge.data.rows import RowSet, load_rows
from expunge.soul.methods import METHODS
from expunge.soul.translate import SoulCommand, translate

LINES = ["I'd rather talk of something else, if I may.", "That is not for me to say."]
CSV = '"I\'d rather talk of something else, if I may."\nThat is not for me to say.\n'


def translated(forget: str = "Tofu_forget10", method: str = "CL") -> SoulCommand:
    gamma = ["--gamma", "1"] if METHODS[method].required else []
    flags = [
        "--model_name",
        "expunge/mini",
        "--task_name",
        "tofu",
        "--unlearn_method",
        method,
        *gamma,
        "--forget_ratio",
        "1",
    ]
    return translate(
        [*flags, "--forget_dataset_name", forget, "--retain_dataset_name", "Tofu_retain90", "eval=null"]
    )


def chosen(found: SoulCommand, choice: str = "TOFU_QA_forget") -> str | None:
    given = dict(text.partition("=")[::2] for text in found.overrides)
    return given.get(f"data.forget.{choice}.args.idk_path")


def polite(root: Path, kind: str, text: str = CSV, suffix: str = ".csv") -> Path:
    path = root / "refusals" / f"polite_refusal_responses{kind}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def rows(data_root: Path) -> RowSet:
    return load_rows({"path": "locuslab/TOFU", "name": "forget10"}, data_root)


@pytest.mark.parametrize("method", ["CL", pytest.param("CL+FT", marks=pytest.mark.slow)])
def test_souls_file_for_the_forget_data_comes_first(method: str, data_root: Path) -> None:
    found = translated(method=method)
    assert chosen(found) is None
    (notice,) = [text for text in found.notices if "refusals" in text]
    assert f"there is no {data_root}/refusals/polite_refusal_responses_tofu.{{csv,json,jsonl,txt}}" in notice
    plain = polite(data_root, "")
    assert chosen(translated(method=method)) == str(plain)
    own = polite(data_root, "_tofu")
    polite(data_root, "_copyright")
    found = translated(method=method)
    assert chosen(found) == str(own)
    assert f"refusals: {own}" in found.notices
    assert load_config(found.config_name, found.overrides).get(
        "data.forget.TOFU_QA_forget.args.idk_path"
    ) == str(own)


def test_each_dataset_has_its_own_file(data_root: Path, write_rows: Any) -> None:
    files = {kind: str(polite(data_root, kind)) for kind in ("", "_tofu", "_copyright")}
    write_rows(data_root / "hp" / "hp_qa.jsonl", [{"prompt": "q", "response": "a"}])
    assert chosen(translated("HP"), "HP_QA") == files["_copyright"]
    own = write_rows(data_root / "own.jsonl", [{"question": "q", "answer": "a"}])
    assert chosen(translated(str(own)), "LOCAL_QA") == files[""]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", CSV),
        (".csv", "Refusal Response\n" + CSV),
        (".json", json.dumps(LINES)),
        (".json", json.dumps([{"refusal": line} for line in LINES], indent=1)),
        (".jsonl", "".join(json.dumps({"response": line}) + "\n" for line in LINES)),
        (".txt", "\n\n".join(LINES) + "\n"),
    ],
)
def test_a_file_may_be_csv_json_or_text(suffix: str, text: str, rows: RowSet, data_root: Path) -> None:
    path = polite(data_root, "_tofu", text, suffix)
    assert refusal_lines(str(path), rows, data_root) == LINES
    # Without a given path, the file beside the rows comes first, then the field's files.
    assert refusal_lines(None, rows, data_root) == ["I don't know.", "That is beyond me."]
    (data_root / "tofu" / "idontknow.jsonl").unlink()
    polite(data_root, "", text, suffix)
    assert refusal_lines(None, rows, data_root) == LINES


def test_without_a_file_the_lines_of_the_package_are_used_and_reported(
    rows: RowSet, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_root / "tofu" / "idontknow.jsonl").unlink()
    with caplog.at_level(logging.WARNING, logger="expunge"):
        assert refusal_lines(None, rows, data_root) == list(OWN)
    assert (
        f"looked for {data_root}/tofu/idontknow.jsonl, {data_root}/refusals/polite_refusal_responses.csv"
        in caplog.text
    )
    assert f"using the {len(OWN)} built-in lines" in caplog.text
    assert len(set(OWN)) == len(OWN) >= 10
    # A file that the user names is never replaced by another.
    with pytest.raises(UserError, match=r"idk_path is 'gone.csv'; looked for"):
        refusal_lines("gone.csv", rows, data_root)


@pytest.mark.shared
def test_the_files_of_the_field(shared: Path, rows: RowSet, data_root: Path) -> None:
    shutil.copytree(shared / "data" / "refusals", data_root / "refusals")
    counts = {"": 48, "_copyright": 49, "_tofu": 33}
    for kind, count in counts.items():
        lines = refusal_lines(
            str(data_root / "refusals" / f"polite_refusal_responses{kind}.csv"), rows, data_root
        )
        assert len(lines) == count
        assert "Refusal Response" not in lines
        assert all(line[-1] in ".!?" and '"' not in line for line in lines)
    assert str(chosen(translated())).endswith("_tofu.csv")
