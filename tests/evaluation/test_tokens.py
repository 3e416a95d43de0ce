"""The single pass: shared prefixes, duplicates and batches change no number; the model is left unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from subjects import subject_of

from expunge.data.encoded import Encoded, encode_ids
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.prefix_trees import Tree, can_share, grow, pack
from expunge.evaluation.collect.rounding import rounded_statistics
from expunge.evaluation.collect.tokens import collect_tokens
from expunge.evaluation.tables import TokenTable
from expunge.evaluation.views import examples_of

VOCAB = 60


def example(
    row: int, answer: int, prompt: Sequence[int], labels: Sequence[int], after: Sequence[int] = ()
) -> Encoded:
    ids = (*prompt, *labels, *after)
    mask = tuple(len(prompt) <= position < len(prompt) + len(labels) for position in range(len(ids)))
    return Encoded(
        ids,
        mask,
        len(prompt) + len(labels) - 1 if labels else None,
        len(prompt),
        f"row{row}",
        row,
        answer,
        "text",
    )


def some_examples(seed: int = 0, rows: int = 5, answers: int = 3) -> list[Encoded]:
    """Prompts of different lengths with several answers; some have tokens after the labels."""
    source = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        prompt = source.integers(1, VOCAB, 3 + row).tolist()
        for answer in range(answers):
            labels = source.integers(1, VOCAB, 1 + int(source.integers(6))).tolist()
            found.append(example(row, answer, prompt, labels, [7] * (row % 2)))
    return found


def collected(model: Any, encoded: Sequence[Encoded], **kwargs: Any) -> TokenTable:
    rows = sorted({item.row for item in encoded})
    view = (encoded, examples_of(encoded, [f"row{row}" for row in rows]))
    cost = kwargs.pop("cost", Cost())
    return collect_tokens(subject_of(model, **kwargs), {"view": view}, cost)["view"]


def assert_same(one: TokenTable, other: TokenTable, atol: float = 2e-5) -> None:
    for name in ("offset_B1", "hit_M", "turn_end_M"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("logp_M", "mu_M", "var_M", "nll_M"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)


def test_statistics_are_those_of_each_example_alone(tiny_model: Any) -> None:
    model, encoded = tiny_model(), some_examples()
    table = collected(model, encoded)
    for number, item in enumerate(encoded):
        with torch.no_grad():
            logp_TV = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        labels = [position for position, counted in enumerate(item.label_mask) if counted]
        token = slice(table.offset_B1[number], table.offset_B1[number + 1])
        rows_NV = logp_TV[[position - 1 for position in labels]]
        target_N = torch.tensor([item.input_ids[position] for position in labels])
        np.testing.assert_allclose(
            table.logp_M[token], rows_NV.gather(1, target_N[:, None])[:, 0].numpy(), atol=2e-5
        )
        np.testing.assert_array_equal(table.hit_M[token], (rows_NV.argmax(-1) == target_N).numpy())
        mu_N = (rows_NV.exp() * rows_NV).sum(-1)
        np.testing.assert_allclose(table.mu_M[token], mu_N.numpy(), atol=2e-5)
        np.testing.assert_allclose(
            table.var_M[token], ((rows_NV - mu_N[:, None]) ** 2 * rows_NV.exp()).sum(-1).numpy(), atol=1e-4
        )
        assert table.turn_end_M[token].tolist() == [False] * (len(labels) - 1) + [True]


def test_shared_prefixes_and_batch_sizes_change_no_number(tiny_model: Any) -> None:
    model, encoded = tiny_model(), some_examples()
    alone, shared = Cost(), Cost()
    table = collected(model, encoded, share_prefixes=False, batch_size=1, cost=alone)
    assert_same(table, collected(model, encoded, batch_size=1, cost=shared))
    assert_same(table, collected(model, encoded, batch_size=64))
    assert_same(table, collected(model, encoded, share_prefixes=False, batch_size=3))
    prompts = sum(3 + row for row in range(5))
    beginnings = {
        (item.row, item.input_ids[3 + item.row : stop])
        for item in encoded
        for stop in range(4 + item.row, len(item.label_ids) + 4 + item.row)
    }
    assert shared.forward_tokens == prompts + len(beginnings)
    assert alone.forward_tokens == 3 * prompts + sum(len(item.label_ids) for item in encoded)


def test_a_tree_is_laid_out_branch_after_branch() -> None:
    """Prompt 1 2, answers 3 4, 3 5 6 and 3 4 7 as 1 2 3 4 7 5 6: one 3; tokens attend along their paths."""
    tree = Tree([1, 2])
    for number, ids in enumerate(([3, 4], [3, 5, 6], [3, 4, 7])):
        tree.add(number, ids, [True, ids[1] != 5, True][: len(ids)])
    layout = tree.layout()
    assert layout.ids == [1, 2, 3, 4, 7, 5, 6]
    assert layout.position == [0, 1, 2, 3, 4, 3, 4]
    assert layout.last == [6, 6, 6, 4, 4, 6, 6]
    places = [layout.label[tree.scored[node]] for node in tree.ways[1]]
    assert places == [2, 6]  # 5 is no label
    packed = pack([tree], 0, torch.float32)
    seen_TT = packed.kwargs["attention_mask"][0, 0] == 0
    assert seen_TT[4].tolist() == [True] * 5 + [False] * 2
    assert seen_TT[6].tolist() == [True] * 3 + [False] * 2 + [True] * 2
    assert packed.ways == {0: [0, 1], 1: [0, 2], 2: [0, 1, 3]}
    assert packed.labels.predictor_BN.tolist() == [[1, 2, 5, 3]]


ALL = ["eager", "sdpa"]
ARCHITECTURES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "olmo2",
    "smollm3",
    "stablelm",
]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        (kind, attention)
        for kind in ARCHITECTURES
        for attention in ALL
        if (kind, attention) != ("gemma2", "sdpa")
    ],
)
def test_every_architecture_that_shares_prefixes_gives_the_numbers_of_separate_passes(
    kind: str, attention: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    extra = {"pad_token_id": 0} if kind != "phi" else {"pad_token_id": 0, "num_key_value_heads": 2}
    head = {"head_dim": 8} if kind.startswith(("gemma", "qwen3")) else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.3,
        **{**sizes, **head, **extra},
    )
    if kind == "gemma2" and attention == "sdpa":
        pytest.skip("transformers offers no sdpa for it")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    assert can_share(model, 30)
    encoded = some_examples()
    assert_same(collected(model, encoded, share_prefixes=False), collected(model, encoded), atol=2e-4)


def test_models_that_do_not_take_our_mask_do_not_share(tiny_model: Any) -> None:
    model = tiny_model()
    assert can_share(model, 10)
    model.config.model_type = "mamba"
    assert not can_share(model, 10)
    model.config.model_type = "mistral"
    model.config.sliding_window = 9
    assert not can_share(model, 10)
    assert can_share(model, 9)


def test_an_example_that_two_views_have_is_computed_once(tiny_model: Any) -> None:
    encoded = some_examples(answers=1)
    rows = examples_of(encoded, [f"row{row}" for row in range(5)])
    cost = Cost()
    found = collect_tokens(
        subject_of(tiny_model()),
        {"a": (encoded, rows), "b": (encoded[1:3], examples_of(encoded[1:3], ["x", "row1", "row2"]))},
        cost,
    )
    assert (cost.examples, cost.unique) == (7, 5)
    part = slice(found["a"].offset_B1[1], found["a"].offset_B1[3])
    np.testing.assert_array_equal(found["b"].logp_M, found["a"].logp_M[part])


def test_an_example_without_labels_has_no_tokens(tiny_model: Any) -> None:
    encoded = [example(0, 0, [3, 4], []), example(1, 0, [3, 4], [5, 6])]
    table = collected(tiny_model(), encoded)
    assert table.offset_B1.tolist() == [0, 0, 2]
    assert np.isnan(table.avg_nll_B[0])
    assert np.isfinite(table.avg_nll_B[1])
    assert collected(tiny_model(), encoded[:1]).offset_B1.tolist() == [0, 0]


def test_plain_text_and_long_groups(tiny_model: Any) -> None:
    """Text has one token before its labels; a group that is too long is split, and the prefix is repeated."""
    encoded = [
        encode_ids(ids, row_id=str(row), row=row)
        for row, ids in enumerate([(3, 4, 5, 6), (3, 9, 8), (3, 4, 4, 4, 4)])
    ]
    trees = grow(encoded, share=True, longest=7)
    assert [list(tree.ways) for tree in trees] == [[0, 1], [2]]
    assert pack(trees, 0, torch.float32).tokens == (1 + 3 + 2) + (1 + 4)
    assert_same(collected(tiny_model(), encoded), collected(tiny_model(), encoded, share_prefixes=False))


def test_the_model_is_left_as_it_was(tiny_model: Any) -> None:
    model = tiny_model(attention_dropout=0.5).train()
    first = collected(model, some_examples())
    assert model.training
    assert_same(first, collected(model, some_examples()), atol=0)  # no dropout in a pass
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_models_give_float32_statistics(tiny_model: Any) -> None:
    encoded = some_examples()
    table = collected(tiny_model().to(torch.bfloat16), encoded)
    assert table.logp_M.dtype == np.float32
    np.testing.assert_allclose(table.logp_M, collected(tiny_model(), encoded).logp_M, atol=0.3)
    autocast = collected(tiny_model(), encoded, compute_dtype=torch.bfloat16)
    np.testing.assert_allclose(autocast.logp_M, collected(tiny_model(), encoded).logp_M, atol=0.3)
    assert np.isfinite(autocast.logp_M).all()


def test_losses_are_rounded_as_torch_rounds_them_with_the_vocabulary_first() -> None:
    """The field's own lines, on a peaked distribution, where their rounding error exceeds that of ours."""
    logits_BNV = torch.randn(2, 37, 4096, generator=torch.Generator().manual_seed(0))
    label_BN = torch.randint(0, 4096, (2, 37), generator=torch.Generator().manual_seed(1))
    logits_BNV.scatter_(2, label_BN.unsqueeze(-1), 18.0)
    logits_BNV[0, :5, 7] = 19.0
    logits_BNV[1, 0, :] = -torch.inf
    logits_BNV[1, 0, label_BN[1, 0]] = 3.0  # certain: every other token has no mass at all
    logp_BNV = logits_BNV.log_softmax(-1)
    found, plain = (
        rounded_statistics(logits_BNV, label_BN),
        rounded_statistics(logits_BNV, label_BN, as_published=False),
    )
    theirs_BN = torch.nn.functional.cross_entropy(logits_BNV.transpose(1, 2), label_BN, reduction="none")
    torch.testing.assert_close(found.nll_BN, theirs_BN, rtol=0, atol=2e-7)
    assert torch.equal(found.logp_BN, logp_BNV.gather(-1, label_BN.unsqueeze(-1)).squeeze(-1))
    exact_BN = logits_BNV.double().log_softmax(-1).gather(-1, label_BN.unsqueeze(-1)).squeeze(-1)
    assert float((found.nll_BN.double() + exact_BN).abs().mean()) > 5 * float(
        (plain.nll_BN.double() + exact_BN).abs().mean()
    )
    torch.testing.assert_close(tuple(found)[:4], tuple(plain)[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.nll_BN, plain.nll_BN, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.hit_BN, logits_BNV.argmax(-1) == label_BN)
    assert torch.isfinite(found.mu_BN).all()
    assert (found.mu_BN[1, 0], found.var_BN[1, 0]) == (0.0, 0.0)
    one = rounded_statistics(logits_BNV[:1, :1], label_BN[:1, :1])  # a single position is no other case
    torch.testing.assert_close(one.nll_BN, found.nll_BN[:1, :1], rtol=0, atol=2e-7)
    half = rounded_statistics(logits_BNV.bfloat16(), label_BN)
    assert torch.equal(half.nll_BN, -half.logp_BN)
    tie = rounded_statistics(torch.zeros(1, 2, 3), torch.tensor([[0, 1]]))
    assert tie.hit_BN.tolist() == [[True, False]]  # argmax takes the first of equals
