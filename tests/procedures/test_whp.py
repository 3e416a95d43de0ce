"""WHP: generic predictions on tensors and on models, and as training targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expunge.config.procedure import ARGS, find_procedure
from expunge.core.binding import Binder, bound_alone
from expunge.core.errors import UserError
from expunge.core.files import write_json
from expunge.core.needs import parse_need
from expunge.data.collate import collate
from expunge.data.datasets import Dataset
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.models.load import Loaded
from expunge.procedures.base import Procedure, procedure, procedure_of
from expunge.procedures.whp import LABELS_FILE, generic_labels, generic_logits, whp, with_targets
from expunge.training.quantities import build_quantities

HANDLER = "expunge.procedures.whp:whp"


@pytest.fixture
def rows(tiny_tokenizer: Any) -> Dataset:
    """Three questions whose answers have different lengths."""
    template = Template.from_args({}, tiny_tokenizer)
    texts = ["Ada Quill.", "Port Verdant in 1952.", "I don't know."]
    encoded = [
        template.encode(f"Who is author {n}?", text, row_id=f"id{n}", row=n) for n, text in enumerate(texts)
    ]
    members = [Row(f"id{n}", n, {"question": "?", "answer": text}) for n, text in enumerate(texts)]
    return Dataset("forget", RowSet.of("forget", members, "test"), encoded, "print")


def test_hand_worked() -> None:
    """v_b = (4, 3, 1), v_r = (6, 3.5, 0): relu of the growth is (2, .5, 0); a token that shrinks counts 0.

    alpha 1: (4 - 2, 3 - .5, 1) = (2, 2.5, 1), so the label changes from token 0 to token 1. alpha 5: (-6, .5,
    1), so it changes to token 2.
    """
    base_BNV, more_BNV = torch.tensor([[[4.0, 3.0, 1.0]]]), torch.tensor([[[6.0, 3.5, 0.0]]])
    assert generic_logits(base_BNV, more_BNV, 1.0).tolist() == [[[2.0, 2.5, 1.0]]]
    assert generic_logits(base_BNV, more_BNV, 5.0).tolist() == [[[-6.0, 0.5, 1.0]]]
    assert torch.equal(generic_logits(base_BNV, more_BNV, 0.0), base_BNV)


def test_no_label_is_a_token_that_was_lowered_below_one_that_did_not_grow() -> None:
    """A token that grew by g > 0 wins only if v_b - alpha g is above all tokens that did not grow."""
    chance = torch.Generator().manual_seed(3)
    base_BNV, more_BNV = torch.randn(2, 50, 11, generator=chance), torch.randn(2, 50, 11, generator=chance)
    label_BN = generic_logits(base_BNV, more_BNV, 5.0).argmax(-1)
    grew = 0
    for base_V, more_V, label in zip(
        base_BNV.flatten(0, 1).double(), more_BNV.flatten(0, 1).double(), label_BN.flatten(), strict=True
    ):
        growth_V = (more_V - base_V).clamp(min=0)
        still = base_V[growth_V == 0].max() if (growth_V == 0).any() else torch.tensor(-torch.inf)
        if growth_V[label] > 0:
            grew += 1
            assert base_V[label] - 5 * growth_V[label] > still
        else:
            assert base_V[label] == still
    assert 0 < grew < 100


def test_half_precision_logits_are_combined_in_float32() -> None:
    """256 - 5 (258 - 256) = 246. With 257.5 the result is 248.5, not in bfloat16, whose spacing here is 1."""
    assert (
        generic_logits(torch.tensor([[[256.0]]]).bfloat16(), torch.tensor([[[258.0]]]).bfloat16(), 5.0).item()
        == 246.0
    )
    odd = generic_logits(torch.tensor([[[256.0]]]).bfloat16(), torch.tensor([[[257.5]]]), 5.0)
    assert (odd.dtype, odd.item()) == (torch.float32, 248.5)


def test_labels_of_models_are_those_of_each_row_alone(
    tiny_model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any batches and padding. The reference calls each model on one row and shifts positions by hand."""
    base, more = tiny_model(seed=1), tiny_model(seed=2)
    loaded = [Loaded(model, torch.float32) for model in (base, more)]
    together = generic_labels(*loaded, rows.encoded, alpha=2.0, pad_id=4)
    monkeypatch.setattr("expunge.procedures.whp.MAX_TOKENS", 1)
    assert together == generic_labels(*loaded, rows.encoded, alpha=2.0, pad_id=0)
    for item, labels in zip(rows.encoded, together, strict=True):
        ids_BT = torch.tensor([item.input_ids])
        with torch.no_grad():
            first_TV, second_TV = base(ids_BT).logits[0], more(ids_BT).logits[0]
        generic_TV = first_TV - 2.0 * torch.relu(second_TV - first_TV)
        places = [place for place, counted in enumerate(item.label_mask) if counted]
        assert labels == [int(generic_TV[place - 1].argmax()) for place in places]
    own = generic_labels(loaded[0], loaded[0], rows.encoded, alpha=2.0, pad_id=4)
    assert own == generic_labels(*loaded, rows.encoded, alpha=0.0, pad_id=4)


def test_targets_are_learnt_with_the_rows_as_input(tiny_model: Any, rows: Dataset) -> None:
    """The trained log-probability is that of the target after the tokens of the row; label masks are kept."""
    labels = [[7 + number] * sum(item.label_mask) for number, item in enumerate(rows.encoded)]
    changed = with_targets(rows, labels)
    assert [item.input_ids for item in changed.encoded] == [item.input_ids for item in rows.encoded]
    model = tiny_model(seed=1)
    for side in (collate(changed.encoded, 4), collate(changed.encoded, 4, side="left")):
        found = build_quantities([parse_need("retain_logp_BN")], model, {"retain": side})
        for item, target, logp_N, mask_N in zip(
            changed.encoded, (7, 8, 9), found["retain_logp_BN"], found["retain_mask_BN"], strict=True
        ):
            with torch.no_grad():
                logp_TV = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
            expected = [
                float(logp_TV[place - 1, target]) for place, counted in enumerate(item.label_mask) if counted
            ]
            assert logp_N[mask_N].tolist() == pytest.approx(expected, abs=1e-5)
    assert "targets" not in collate(rows.encoded, 4)
    mixed = collate([rows.encoded[0], changed.encoded[1]], 4)
    width = len(rows.encoded[0])
    assert mixed["targets"][0, :width].tolist() == list(rows.encoded[0].input_ids)
    assert changed.encoded[0].prompt_only().targets is None


def test_labels_of_other_rows_are_refused(rows: Dataset, tmp_path: Path) -> None:
    """The rows changed on disk after the run was stopped."""
    write_json(tmp_path / LABELS_FILE, {"alpha": 5.0, "data": "another print", "rows": []})
    with pytest.raises(UserError, match="belongs to other forget rows"):
        whp(SimpleNamespace(folder=tmp_path), rows)  # type: ignore[arg-type]  # nothing else of the stages is read


def bind_procedure(binder: Binder, handler: str, args: dict[str, Any]) -> None:
    signature = find_procedure(binder, handler)
    if signature is not None:
        binder.bind(ARGS, signature, args)


def build_procedure(handler: str, args: dict[str, Any]) -> Procedure:
    return procedure_of(bound_alone(bind_procedure, handler, args)[ARGS])


def test_hyper_parameters_are_checked_against_the_signature() -> None:
    assert build_procedure(HANDLER, {"alpha": 2}).spec.stages == {"reinforced": "forget", "final": "forget"}
    with pytest.raises(UserError, match="alpha=-1: must be a number of at least 0") as error:
        build_procedure(HANDLER, {"alpha": -1, "alhpa": 2})
    assert "'alhpa'" in str(error.value)
    with pytest.raises(UserError, match="mode=logits: mixing logits at inference needs two models"):
        build_procedure(HANDLER, {"mode": "logits"})
    with pytest.raises(UserError, match="mode=label: must be 'labels'"):
        build_procedure(HANDLER, {"mode": "label"})
    with pytest.raises(UserError, match="alpha=null: must be a number of at least 0"):
        build_procedure(HANDLER, {"alpha": None})
    with pytest.raises(UserError, match="did you mean 'whp'"):
        build_procedure("expunge.procedures.whp:wph", {})
    with pytest.raises(UserError, match="is not a procedure"):
        build_procedure("expunge.procedures.whp:generic_logits", {})


def test_the_decorator_knows_what_a_procedure_can_read(tmp_path: Path) -> None:
    def reads_speed(stages: Any, speed: Any) -> None: ...

    def plain(stages: Any, forget: Any, *, scale: float = 1.0) -> None: ...

    with pytest.raises(ValueError, match="'speed' is neither a side"):
        procedure(stages={})(reads_speed)
    with pytest.raises(ValueError, match="'skale' is neither"):
        procedure(stages={}, at_least_0=("skale",))(plain)
