"""Continuations for ELM: drawn from a distribution shifted from an expert prompt to a novice prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.cli.main import main
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.data.alternate_answers import from_file
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.methods.elm import prefixed, shifted
from expunge.procedures.novice import LEADS, _behind, _lead_ids, _Steering, novice_alternates, steered

# Probabilities of three tokens: plain, after the expert prompt, and after the novice prompt.
REF, EXPERT, NOVICE = (
    torch.tensor([weights]).log() for weights in ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25), (0.25, 0.25, 0.5))
)
TEXTS = [[0, 40, 41, 42], [0, 50, 51], [0, 60, 61, 62, 63, 64, 65]]
PREFIXES = {"expert": [20, 21, 22], "novice": [30, 31, 32, 33, 34]}
STREAMS = [TEXTS, *([[text[0], *prefix, *text[1:]] for text in TEXTS] for prefix in PREFIXES.values())]


def draws(count: int, length: int) -> Tensor:
    return torch.rand(count, length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def by_steps(
    model: Any, draws_BN: Tensor, strength: float, temperature: float, ends: tuple[int, ...] = ()
) -> list[list[int]]:
    """Reference: one text at a time, the whole text again for each token, without padding and cache."""
    found: list[list[int]] = []
    for number, places in enumerate(draws_BN.tolist()):
        written: list[int] = []
        for place in places:
            with torch.no_grad():
                logp = [
                    model(torch.tensor([[*s[number], *written]])).logits[0, -1].double().log_softmax(-1)
                    for s in STREAMS
                ]
            weights = ((logp[0] + strength * (logp[2] - logp[1])) / temperature).exp()
            shares = (weights / weights.sum()).tolist()
            token, below = 0, shares[0]
            while below <= place:
                token += 1
                below += shares[token]
            if token in ends:
                break
            written.append(token)
        found.append(written)
    return found


@pytest.fixture
def rows() -> RowSet:
    questions = ["Who is author 0?", "Where was the second of the two authors born?", "Who wrote it?"]
    return RowSet.of(
        "forget",
        [Row(f"id{n}", n, {"question": q, "answer": "Ada Quill."}) for n, q in enumerate(questions)],
        "test",
    )


@pytest.fixture
def written(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    model, template = tiny_model(seed=1), Template.from_args({}, tiny_tokenizer)
    return lambda rows, **settings: novice_alternates(
        model, template, rows, **{"concept": "ships", "max_new_tokens": 6, "temperature": 0.8, **settings}
    )


def test_the_shifted_distribution_by_hand():
    """p = (1/2, 1/4, 1/4); novice over expert = (1/2, 1, 2), squared (1/4, 1, 4).

    The weights are (1/8, 1/4, 1), so the distribution is (1, 2, 8) / 11.
    """
    found = shifted(REF, EXPERT, NOVICE, 2.0).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, 8.0]]) / 11)
    torch.testing.assert_close(shifted(REF, EXPERT, NOVICE, 0.0).exp(), torch.tensor([[0.5, 0.25, 0.25]]))


@pytest.mark.parametrize(
    ("temperature", "place", "token"),
    [
        (1.0, 0.0, 0),
        (1.0, 0.09, 0),
        (1.0, 0.0915, 1),
        (1.0, 0.272, 1),
        (1.0, 0.2735, 2),
        (1.0, 1 - 2**-53, 2),
        (2.0, 0.19, 0),
        (2.0, 0.192, 1),
        (2.0, 0.46, 1),
        (2.0, 0.461, 2),
    ],
)
def test_a_value_of_the_cumulative_distribution_selects_a_token_for_all_streams(
    temperature: float, place: float, token: int
):
    """The cumulative sums of (1, 2, 8) / 11 are .0909, .2727, 1.

    At temperature 2 the distribution is (1, 1.4142, 2.8284) / 5.2426, with the sums .1907, .4605, 1.
    """
    scores = _Steering(torch.tensor([[place]], dtype=torch.float64), 2.0, temperature)(
        torch.zeros(3, 1), torch.cat([REF, EXPERT, NOVICE])
    )
    assert scores.argmax(-1).tolist() == [token] * 3
    assert (scores == 0).sum(-1).tolist() == [1, 1, 1]
    assert (scores == -torch.inf).sum(-1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("strength", "temperature"), [(0.0, 1.0), (1.0, 0.7), (3.0, 1.0)])
def test_a_padded_batch_with_a_cache_writes_what_a_loop_without_either_writes(
    tiny_model: Any, strength: float, temperature: float
):
    model, draws_BN = tiny_model(seed=1), draws(3, 10)
    settings: dict[str, Any] = {"strength": strength, "temperature": temperature, "pad_id": 4}
    whole = steered(model, STREAMS, draws_BN, ends=(), **settings)
    assert whole == by_steps(model, draws_BN, strength, temperature)
    assert all(len(row) == 10 for row in whole)
    # Now a token from the middle of the first text ends texts.
    end = whole[0][4]
    ended = steered(model, STREAMS, draws_BN, ends=(end,), **settings)
    assert ended == by_steps(model, draws_BN, strength, temperature, ends=(end,))
    assert 0 <= len(ended[0]) <= 4


def test_a_written_padding_token_is_treated_like_any_other_token(tiny_model: Any):
    model, draws_BN = tiny_model(seed=1), draws(3, 8)
    pad = steered(model, STREAMS, draws_BN, strength=1.0, temperature=1.0, ends=(), pad_id=4)[1][2]
    found = steered(model, STREAMS, draws_BN, strength=1.0, temperature=1.0, ends=(), pad_id=pad)
    assert found == by_steps(model, draws_BN, 1.0, 1.0)


def test_the_model_is_not_changed(tiny_model: Any):
    model = tiny_model(seed=1, attention_dropout=0.5).train()
    own, state = model.generation_config, torch.random.get_rng_state()
    first = steered(model, STREAMS, draws(3, 4), strength=1.0, temperature=1.0, ends=(), pad_id=4)
    assert model.training
    assert model.generation_config is own
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (
        steered(model.eval(), STREAMS, draws(3, 4), strength=1.0, temperature=1.0, ends=(), pad_id=4) == first
    )


@pytest.mark.parametrize("bos", [0, None])
def test_a_prefix_has_the_same_position_as_in_the_erase_term(bos: int | None):
    ids = torch.tensor([TEXTS[0]])
    side = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "label_mask": ids > 41,
        "row": torch.tensor([0]),
    }
    assert list(_behind(TEXTS[0], (20, 21), bos)) == prefixed(side, (20, 21), bos)["input_ids"][0].tolist()


def test_answers_begin_with_the_sentences_in_turn_and_record_their_settings(written: Any, rows: RowSet):
    found = written(rows, count=2, strength=1.5, seed=7)
    assert [entry["id"] for entry in found] == ["id0", "id1", "id2"]
    begins = [
        tuple(text.startswith(lead) for lead in LEADS).index(True)
        for entry in found
        for text in entry["alternate"]
    ]
    assert begins == [0, 1, 1, 2, 2, 3]
    assert any(text not in LEADS for entry in found for text in entry["alternate"])
    made = [entry["made_with"] for entry in found]
    assert made[0] == made[2]
    assert (made[0]["novice_of"], made[0]["strength"], made[0]["temperature"], made[0]["seed"]) == (
        "ships",
        1.5,
        0.8,
        7,
    )
    bare = written(rows, leads=("",))
    assert not any(text.startswith(lead) for entry in bare for text in entry["alternate"] for lead in LEADS)


def test_answers_depend_on_seed_and_concept_but_not_on_the_batch(written: Any, rows: RowSet):
    def texts(**settings: Any) -> list[list[str]]:
        return [entry["alternate"] for entry in written(rows, leads=("",), count=2, **settings)]

    assert texts(batch_size=1) == texts(batch_size=2) == texts()
    assert texts(seed=1) != texts()
    assert texts(concept="the works of Ada Quill") != texts()
    # Without a shift the prompts have no effect.
    assert texts(concept="the works of Ada Quill", strength=0.0) == texts(strength=0.0) != texts()


def test_an_unfinished_answer_has_no_end_tag(tiny_tokenizer: Any):
    tags = {"user_start_tag": "Q: ", "user_end_tag": "\n", "asst_start_tag": "A: ", "asst_end_tag": "###"}
    template = Template.from_args({"apply_chat_template": False, **tags}, tiny_tokenizer)
    ids = [*template.encode("Who?", "").prompt_ids, *_lead_ids(template, "Who?", "Well:")]
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True).endswith("A: Well:")
    assert _lead_ids(template, "Who?", "") == []


def test_the_file_is_read_like_other_files_of_alternates(written: Any, rows: RowSet, tmp_path: Path):
    path = tmp_path / "novice.json"
    write_json(path, written(rows, count=3))
    texts = from_file(path, rows, "alternate", "question", 0)
    assert all(text in entry["alternate"] for text, entry in zip(texts, read_json(path), strict=True))


def test_invalid_settings_and_empty_answers_are_reported(
    written: Any, rows: RowSet, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError, match=r"strength=-1\.0"):
        written(rows, strength=-1.0)
    with pytest.raises(UserError, match="strength=nan"):
        written(rows, strength=float("nan"))
    with pytest.raises(UserError, match="no text under 'reply'"):
        written(rows, answer_key="reply")
    monkeypatch.setattr(
        "expunge.procedures.novice.steered", lambda _, streams, *__, **___: [[]] * len(streams[0])
    )
    assert [entry["alternate"] for entry in written(rows)] == [[lead] for lead in LEADS[:3]]
    with pytest.raises(UserError, match="no other answer to 3 of 3"):
        written(rows, leads=("",))


def test_from_the_command_line_to_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`expunge alternates --novice-of` writes the file for ELM; conflicting options are refused."""
    common = ["experiment=unlearn/mini/default", "task_name=x", f"paths.output_dir={tmp_path / 'run'}"]
    make = ["alternates", *common, "--output", str(tmp_path / "novice.json"), "--max-new-tokens", "2"]
    for options, words in (
        (["--strength", "2"], "add --novice-of"),
        (["--novice-of", "novels", "--prompt", "?"], "one of the two"),
    ):
        assert main([*make, *options]) == 2
        assert words in capsys.readouterr().err
    assert main([*make, "--novice-of", "novels", "--lead", "Let us talk of ships:"]) == 0
    entries = read_json(tmp_path / "novice.json")
    assert len(entries) == 40
    assert all(text.startswith("Let us talk of ships:") for entry in entries for text in entry["alternate"])
    data = [
        "data/datasets@data.forget=MINI_forget_altpo",
        f"data.forget.MINI_forget_altpo.args.alternate_path={tmp_path / 'novice.json'}",
    ]
    run = [
        "trainer=ELM",
        "trainer.method_args.concept=novels",
        "trainer.args.max_steps=1",
        "trainer.args.logging_steps=1",
        "eval=null",
    ]
    assert main(["unlearn", *common, *data, *run]) == 0
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert all(f'"{name}":' in log for name in ("elm", "elm_fluency", "retain_kl"))
