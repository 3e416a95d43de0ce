from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.needs import parse_need
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.lm.labels import HostLabels
from expunge.lm.logprobs import token_logp
from expunge.models import reference as reference_module
from expunge.models.logp_table import LogpTable
from expunge.models.outputs import label_outputs, side_outputs
from expunge.models.reference import CachedReference, FrozenCopy, plan_reference


def make_view(count: int, seed: int, vocab: int = 200) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    view = []
    for row in range(count):
        length = int(torch.randint(4, 30, (1,), generator=generator))
        prompt = int(torch.randint(1, length, (1,), generator=generator))
        ids = torch.randint(5, vocab, (length,), generator=generator).tolist()
        view.append(
            Encoded(
                tuple(ids),
                (False,) * prompt + (True,) * (length - prompt),
                length - 1,
                prompt,
                f"r{row}",
                row,
            )
        )
    return view


@pytest.fixture
def views() -> dict[str, list[Encoded]]:
    return {"forget": make_view(9, 0), "retain": make_view(14, 1)}


def live(model: Any, side: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        out = label_outputs(model, side)
    return token_logp(out.logits_BNV, out.label_BN), out.mask_BN


@pytest.mark.parametrize("max_tokens", [64, 4096])
def test_cached_equals_live_on_every_side(
    tiny_model: Callable[..., Any], views: Any, tmp_path: Path, max_tokens: int
):
    model = tiny_model()
    cached = CachedReference.compute(model, views, tmp_path, pad_id=0, max_tokens=max_tokens)
    for name, view in views.items():
        side = collate([view[5], view[0], view[5], view[8]], 3)
        expected_BN, mask_BN = live(model, side)
        found = cached.outputs(name, side)
        assert found.logits_BNV is None
        assert found.logp_BN.dtype == torch.float32
        torch.testing.assert_close(found.logp_BN[mask_BN], expected_BN[mask_BN], rtol=1e-5, atol=2e-6)
        assert (found.logp_BN[~mask_BN] == 0).all()


def test_frozen_copy_equals_live_and_does_not_change_with_the_model(
    tiny_model: Callable[..., Any], views: Any
):
    model = tiny_model(attention_dropout=0.5).train()
    frozen = FrozenCopy(model)
    side = collate(views["forget"][:4], 0)
    expected_BN, mask_BN = live(model.eval(), side)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    found = frozen.outputs("forget", side)
    torch.testing.assert_close(found.logp_BN[mask_BN], expected_BN[mask_BN])
    assert found.logits_BNV is not None
    assert not found.logits_BNV.requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_is_off_while_caching_and_modes_are_restored(
    tiny_model: Callable[..., Any], views: Any, tmp_path: Path
):
    model = tiny_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    cached = CachedReference.compute(model, views, tmp_path, pad_id=0)
    assert [module.training for module in model.modules()] == modes
    side = collate(views["forget"], 0)
    expected_BN, mask_BN = live(model.eval(), side)
    torch.testing.assert_close(
        cached.outputs("forget", side).logp_BN[mask_BN], expected_BN[mask_BN], rtol=1e-5, atol=2e-6
    )


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each forward pass of the cache."""
    seen: list[int] = []

    def counted(model: Any, side: Any, **kwargs: Any) -> Any:
        seen.append(len(side["input_ids"]))
        return side_outputs(model, side, **kwargs)

    monkeypatch.setattr(reference_module, "side_outputs", counted)
    return seen


def test_written_once_and_used_again(
    tiny_model: Callable[..., Any], views: Any, tmp_path: Path, forwards: list[int]
):
    first = CachedReference.compute(tiny_model(), views, tmp_path, pad_id=0)
    assert sum(forwards) == 23
    again = CachedReference.compute(tiny_model(), views, tmp_path, pad_id=0)
    assert sum(forwards) == 23
    for name in views:
        assert torch.equal(first.tables[name].logp_L, again.tables[name].logp_L)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "forget.json",
        "forget.safetensors",
        "retain.json",
        "retain.safetensors",
    ]


@pytest.mark.parametrize("change", ["model", "rows", "dtype", "damage", "swap"])
def test_computed_again_if_anything_differs(
    tiny_model: Callable[..., Any], views: Any, tmp_path: Path, forwards: list[int], change: str
):
    CachedReference.compute(tiny_model(), views, tmp_path, pad_id=0)
    model, dtype = tiny_model(seed=int(change == "model")), torch.bfloat16 if change == "dtype" else None
    if change == "rows":
        views["forget"][2] = make_view(5, 9)[2]
    if change == "damage":
        path = tmp_path / "forget.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    if change == "swap":
        (tmp_path / "retain.safetensors").replace(tmp_path / "forget.safetensors")
    forwards.clear()
    cached = CachedReference.compute(model, views, tmp_path, pad_id=0, autocast_dtype=dtype)
    assert sum(forwards) >= 9
    if dtype is None:
        side = collate(views["forget"], 0)
        expected_BN, mask_BN = live(model, side)
        torch.testing.assert_close(
            cached.outputs("forget", side).logp_BN[mask_BN], expected_BN[mask_BN], rtol=1e-5, atol=2e-6
        )


def test_a_missing_row_or_a_row_with_other_labels_is_never_returned(
    tiny_model: Callable[..., Any], views: Any, tmp_path: Path
):
    fewer = {**views, "retain": [item for item in views["retain"] if item.row != 4]}
    cached = CachedReference.compute(tiny_model(), fewer, tmp_path, pad_id=0)
    with pytest.raises(AssertionError, match="not all in the reference table"):
        cached.outputs("retain", collate([views["retain"][4]], 0))
    side = collate([views["forget"][1]], 0)
    side["input_ids"] = side["input_ids"] + 1
    with pytest.raises(AssertionError, match="other labels"):
        cached.outputs("forget", side)
    with pytest.raises(AssertionError, match="no reference was cached"):
        cached.outputs("alternate", side)


def test_bf16_cache_equals_the_bf16_frozen_copy(tiny_model: Callable[..., Any], views: Any, tmp_path: Path):
    model = tiny_model()
    cached = CachedReference.compute(model, views, tmp_path, pad_id=0, autocast_dtype=torch.bfloat16)
    side = collate(views["forget"], 0)
    expected = FrozenCopy(model, autocast_dtype=torch.bfloat16).outputs("forget", side)
    exact_BN, mask_BN = live(model, side)
    assert (expected.logp_BN - exact_BN)[mask_BN].abs().max() > 1e-4
    torch.testing.assert_close(
        cached.outputs("forget", side).logp_BN[mask_BN], expected.logp_BN[mask_BN], rtol=0.05, atol=0.05
    )


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    """Row 2 has two labels, row 5 has none."""
    table = LogpTable.of(
        {5: (torch.zeros(0), torch.zeros(0)), 2: (torch.tensor([-1.0, -2.0]), torch.tensor([7, 8]))}
    )
    table.write(tmp_path, "forget", {"model": "m"})
    found = LogpTable.read(tmp_path, "forget", {"model": "m"})
    assert found is not None
    labels = HostLabels(torch.tensor([5, 2, 5]), torch.tensor([0, 2, 0]), torch.tensor([7, 8]))
    assert found.look_up(labels).tolist() == [-1.0, -2.0]
    with pytest.raises(AssertionError, match="another number of labels"):
        found.look_up(HostLabels(torch.tensor([2]), torch.tensor([1]), torch.tensor([7])))
    assert LogpTable.read(tmp_path, "forget", {"model": "n"}) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["forget_logp_BN", "retain_logits_BNV"], "none"),
        (["ref_forget_len_B", "ref_forget_mask_BN"], "none"),
        (["ref_forget_seq_logp_B", "ref_alternate_logp_BN"], "cached"),
        (["ref_forget_seq_logp_B", "ref_retain_logits_BNV"], "frozen"),
        (["ref_retain_hidden_BTD"], "frozen"),
    ],
)
def test_plan(names: list[str], expected: str):
    assert plan_reference([parse_need(name) for name in names]) == expected
