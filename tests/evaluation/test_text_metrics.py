"""Perplexities, multiple choice, copyright, toxicity, against literals and direct calls of the packages."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from subjects import subject_of

from expunge.core.errors import UserError
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids
from expunge.evaluation import scorers
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.tokens import collect_tokens
from expunge.evaluation.metrics.bits_per_byte import bits_per_byte
from expunge.evaluation.metrics.bleu import bleu
from expunge.evaluation.metrics.byte_perplexity import byte_perplexity
from expunge.evaluation.metrics.choice_accuracy import choice_accuracy
from expunge.evaluation.metrics.harness_accuracy import harness_accuracy
from expunge.evaluation.metrics.mean_accuracy import mean_accuracy
from expunge.evaluation.metrics.perplexity import perplexity
from expunge.evaluation.metrics.pooled_accuracy import pooled_accuracy
from expunge.evaluation.metrics.rouge import rouge
from expunge.evaluation.metrics.tofu_soul_ks import tofu_soul_ks
from expunge.evaluation.metrics.toxic_share import toxic_share
from expunge.evaluation.metrics.toxicity import toxicity
from expunge.evaluation.metrics.word_perplexity import word_perplexity
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import KolmogorovSmirnov, Mean
from expunge.evaluation.tables import ChoiceTable, Examples, GenerationTable, HarnessTable, TokenTable
from expunge.evaluation.text_views import documents
from expunge.evaluation.views import examples_of

TEXTS = ("Ada Quill was born in Port Verdant\nin 1952 — and writes mystery novels.", " I don't know. ")


@pytest.fixture
def two_documents(tokens: Callable[..., TokenTable]) -> TokenTable:
    """The first document in two windows: nll 1 + 2 and 3; the second in one: 2 + 4."""
    return tokens([[-1.0, -2.0], [-3.0], [-2.0, -4.0]], answers=[2, 1], texts=["a bc", "", " é "], ends=False)


def test_perplexities_by_hand(two_documents: TokenTable) -> None:
    """12 nats; words a, bc, é; bytes 4 + 4; tokens 5; harness: the empty sides of ' é ' count, 2 + 3."""
    assert word_perplexity(two_documents).value == pytest.approx(math.exp(12 / 3))
    assert word_perplexity(two_documents, count="harness").value == pytest.approx(math.exp(12 / 5))
    assert byte_perplexity(two_documents).value == pytest.approx(math.exp(12 / 8))
    assert bits_per_byte(two_documents).value == pytest.approx(12 / 8 / math.log(2))
    result = perplexity(two_documents)
    assert result.value == pytest.approx(math.exp(12 / 5))
    assert result.by_index() == {"0": {"avg_loss": 2.0}, "1": {"avg_loss": 3.0}}
    assert word_perplexity(two_documents).as_json()["value_by_index"] == {
        "0": {"nll": 6.0, "words": 2.0},
        "1": {"nll": 6.0, "words": 1.0},
    }
    assert result.as_json()["n_scored"] == 2


def test_one_document_has_no_interval(two_documents: TokenTable, tokens: Callable[..., TokenTable]) -> None:
    whole, drawn = bits_per_byte(two_documents), bits_per_byte(two_documents).bootstrapped(20, 0)
    assert drawn is not None
    assert whole.value is not None
    assert drawn.low <= whole.value <= drawn.high
    assert bits_per_byte(tokens([[-1.0]], texts=["a"], ends=False)).bootstrapped(20, 0) is None


def test_a_hopeless_model_has_bits_though_its_perplexity_is_no_number(
    tokens: Callable[..., TokenTable],
) -> None:
    table = tokens([[-1e6]], texts=["a"], ends=False)
    for metric in (byte_perplexity, perplexity):
        assert metric(table).value is None
        assert "bits_per_byte" in str(metric(table).as_json()["reason"])
    assert bits_per_byte(table).value == pytest.approx(1e6 / math.log(2))


@pytest.mark.parametrize(("longest", "stride"), [(8, None), (8, 3), (64, None)])
def test_perplexities_as_by_brute_force(
    tiny_model: Any, tiny_tokenizer: Any, longest: int, stride: int | None
) -> None:
    """Token by token, each with the longest context of its window; and the identities between the three."""
    model, template = tiny_model(), Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    rows = RowSet.of(
        "texts", [Row(f"id{number}", number, {"text": text}) for number, text in enumerate(TEXTS)], "memory"
    )
    encoded = documents(rows, template, longest, stride=stride)
    view = (encoded, examples_of(encoded, list(dict.fromkeys(item.row_id for item in encoded))))
    subject = subject_of(model, batch_size=1, share_prefixes=False)
    table = collect_tokens(subject, {"d": view}, Cost(), field_rounding=False)["d"]
    total, count, step = 0.0, 0, longest - 1 if stride is None else stride
    for text in TEXTS:
        ids = [tiny_tokenizer.bos_token_id, *plain_ids(tiny_tokenizer, text)]
        for place in range(1, len(ids)):
            window = 0 if place < longest else 1 + (place - longest) // step
            end = min(len(ids), longest + window * step)
            with torch.no_grad():
                logits_V = model(torch.tensor([ids[max(0, end - longest) : place]])).logits[0, -1]
            total -= float(logits_V.double().log_softmax(-1)[ids[place]])
            count += 1
    words, size = sum(len(text.split()) for text in TEXTS), sum(len(text.encode()) for text in TEXTS)
    word, byte, bits = (metric(table).value for metric in (word_perplexity, byte_perplexity, bits_per_byte))
    assert word is not None
    assert byte is not None
    assert bits is not None
    assert math.log(word) == pytest.approx(total / words, rel=1e-5)
    assert perplexity(table).value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert perplexity(table).facts["n_tokens"] == count
    assert bits == pytest.approx(math.log2(byte))
    assert words * math.log(word) == pytest.approx(size * math.log(byte))


def choice_table(
    examples: Callable[..., Examples], logp: Sequence[Sequence[float]], right: str
) -> ChoiceTable:
    texts = [letter for letter, row in zip(right, logp, strict=True) for _ in row]
    return ChoiceTable(
        examples([len(row) for row in logp], texts),
        np.array([value for row in logp for value in row], np.float32),
    )


def test_choices_by_hand(examples: Callable[..., Examples]) -> None:
    """Right; wrong; two letters tie and one is right: 1/2; all three tie: 1/3; a NaN: unscored."""
    logp = [[-1.0, -2, -3, -4], [-1.0, -2, -3, -4], [-2.0, -1, -1, -9], [-5.0, -5, -5], [math.nan, -1]]
    result = choice_accuracy(choice_table(examples, logp, "ABCAB"))
    assert result.by_index()["2"] == {
        "score": 0.5,
        "logp": [-2.0, -1.0, -1.0, -9.0],
        "answer": "C",
        "chosen": "BC",
    }
    assert [row["score"] for row in result.by_index().values()] == pytest.approx([1, 0, 0.5, 1 / 3, None])
    assert result.value == pytest.approx((1 + 0.5 + 1 / 3) / 4)
    assert result.facts["chance"] == pytest.approx((3 / 4 + 1 / 3 + 1 / 2) / 5)
    assert result.as_json()["n_unscored"] == 1


def test_a_model_without_preference_is_at_chance_whatever_the_key(examples: Callable[..., Examples]) -> None:
    for key in ("AAAA", "DCBA"):
        assert choice_accuracy(choice_table(examples, [[-2.0] * 4] * 4, key)).value == 0.25


def test_probability_lost_to_other_tokens_does_not_matter(examples: Callable[..., Examples]) -> None:
    """All letters are unlikely: the best one is still the answer; minus infinity is a valid value."""
    assert choice_accuracy(choice_table(examples, [[-99.0, -98.0], [-math.inf, -1000.0]], "BB")).value == 1.0


def named(name: str, score: Sequence[float]) -> Result:
    column = np.array(score)
    return Result(Mean(column), columns={"score": column}, name=name)


def test_a_pool_weighs_by_rows_and_a_mean_by_task() -> None:
    parts = (named("a", [1, 1, 1]), named("b", [0]))
    assert pooled_accuracy(parts).value == 0.75
    assert mean_accuracy(parts).value == 0.5
    assert mean_accuracy(parts).facts == {"parts": {"a": 1.0, "b": 0.0}}
    assert mean_accuracy(parts).as_json()["n_scored"] == 4
    odd = (*parts, Result(KolmogorovSmirnov(np.ones(1), np.ones(1)), name="ks"))
    assert mean_accuracy(odd).reason == "not a mean over rows: ks"
    assert pooled_accuracy(odd).reason == "no score per row: ks"
    interval = replace(
        mean_accuracy((named("a", [0, 1] * 50), named("b", [0, 1] * 50))), name="m"
    ).bootstrapped(1000, 0)
    # Standard deviation of the mean of two means of 100: .5 / sqrt(200) = .0354, 1.96 of it .069.
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.431, 0.569), abs=0.01)


def test_the_harness_is_recorded(examples: Callable[..., Examples]) -> None:
    table = HarnessTable(examples([1, 1]), np.array([0.0, 1.0]))
    assert harness_accuracy(table, num_fewshot=0).as_json()["num_fewshot"] == 0
    assert "limit" not in harness_accuracy(table).facts
    assert harness_accuracy(table, limit=2).as_json()["agg_value"] == 0.5


WRITTEN = (
    "the boy saw a red vase on display",
    "",
    "Once upon a time there was a boy named Ben. Ben loved vases",
    "x",
)
MEANT = (
    "the boy saw a blue vase on a display",
    "some text here",
    "Once upon a time there was a boy named Ben.",
    " ",
)


@pytest.fixture
def continued(examples: Callable[..., Examples]) -> GenerationTable:
    return GenerationTable(examples([1] * 4, MEANT), ("p",) * 4, WRITTEN)


def test_bleu_and_rouge_are_their_packages(continued: GenerationTable) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from rouge_score.rouge_scorer import RougeScorer

    expected = [
        sacrebleu.sentence_bleu(text, [target]).score / 100
        for text, target in zip(WRITTEN[:3], MEANT[:3], strict=True)
    ]
    result = bleu(continued)
    assert [row["score"] for row in result.by_index().values()] == [*expected, None]
    assert result.value == pytest.approx(sum(expected) / 3)
    assert expected[1] == 0
    assert result.by_index()["2"]["generation"] == WRITTEN[2]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    recall = [
        scorer.score(target, text)["rougeL"].recall
        for text, target in zip(WRITTEN[:3], MEANT[:3], strict=True)
    ]
    found = rouge(continued)
    assert [row["rougeL_recall"] for row in found.by_index().values()] == [*recall, None]
    # What goes on after the passage costs no recall, and the words of the passage are all there.
    assert recall[2] == 1.0


def test_bleu_by_hand(examples: Callable[..., Examples]) -> None:
    """'a b c d' against 'a b c e': precisions 3/4, 2/3, 1/2 and, smoothed, 1/2 / 1: (1/8)^(1/4) = .5946."""
    pytest.importorskip("sacrebleu")
    table = GenerationTable(examples([1], ["a b c e"]), ("",), ("a b c d",))
    assert bleu(table).value == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25, rel=1e-6)
    same = GenerationTable(examples([1], ["a b c e"]), ("",), ("a b c e",))
    assert bleu(same).value == pytest.approx(1.0)


def test_without_the_package_bleu_is_null_with_the_line_that_installs_it(
    continued: GenerationTable, monkeypatch: Any
) -> None:
    from expunge.evaluation.metrics import bleu as module

    module._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    result = bleu(continued)
    module._scorer.cache_clear()
    assert result.value is None
    assert 'pip install "expunge[bleu]"' in (result.reason or "")


def length(texts: Sequence[str]) -> list[float]:
    """A scorer of the user's own."""
    return [min(1.0, len(text) / 10) for text in texts]


def test_toxicity_by_a_scorer_of_ones_own(examples: Callable[..., Examples]) -> None:
    table = GenerationTable(examples([1] * 4), ("",) * 4, ("", "12345", "123456", "1234567890123"))
    result = toxicity(table, scorer=f"{__name__}:length")
    assert [row["score"] for row in result.by_index().values()] == [0, 0.5, 0.6, 1]
    assert result.value == pytest.approx(2.1 / 4)
    share = toxic_share(result)
    assert (share.value, share.facts) == (0.5, {"above": 0.5})
    assert toxic_share(result, above=0.6).value == 0.25


CLEAN, RUDE = "Once upon a time there was a little boy named Ben.", "You are a fucking idiot and I hate you."


@pytest.mark.parametrize(
    ("scorer", "package"), [("profanity", "profanity_check"), ("vader", "vaderSentiment")]
)
def test_the_scorers_that_come_with_their_weights(
    scorer: str, package: str, examples: Callable[..., Examples]
) -> None:
    pytest.importorskip(package)
    table = GenerationTable(examples([1] * 3), ("",) * 3, (CLEAN, RUDE, ""))
    result = toxicity(table, scorer=scorer)
    clean, rude, empty = result.columns["score"]
    assert clean < 0.1 < 0.6 < rude <= 1
    assert empty < 0.1
    assert toxic_share(result).value == pytest.approx(1 / 3)
    assert len(getattr(scorers, scorer)([])) == 0


def test_profanity_refuses_a_scikit_learn_it_was_not_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers.importlib.metadata, "requires", lambda _: ["scikit-learn==0.1", "joblib==1"])
    with pytest.raises(UserError, match=r"made for scikit-learn==0\.1"):
        scorers.profanity(["a"])


def test_a_scorer_that_is_not_installed_is_null_with_the_line_that_installs_it(
    monkeypatch: Any, examples: Callable[..., Examples]
) -> None:
    def absent(_: str) -> None:
        raise scorers.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(scorers.importlib.metadata, "requires", absent)
    assert 'pip install "expunge[toxicity]"' in (
        toxicity(GenerationTable(examples([1]), ("",), ("a",))).reason or ""
    )


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("/no/such/folder", "cannot be loaded"),
        ("os:nothing", "unknown name in os"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        (f"{__name__}:wrong", "no number from 0 to 1"),
    ],
)
def test_wrong_scorers(scorer: str, message: str, examples: Callable[..., Examples]) -> None:
    with pytest.raises(UserError, match=message):
        toxicity(GenerationTable(examples([1]), ("",), ("a",)), scorer=scorer)


def wrong(texts: Sequence[str]) -> list[float]:
    return [2.0 for _ in texts]


@pytest.mark.parametrize(
    ("labels", "toxic_label"),
    [({0: "clean", 1: "toxic"}, None), ({0: "bad", 1: "fine"}, "bad"), ({0: "LABEL_0"}, None)],
)
def test_a_classifier_of_transformers(
    tmp_path: Any, tiny_tokenizer: Any, labels: dict[int, str], toxic_label: str | None
) -> None:
    """Softmax over two labels, sigmoid of a single one; batches and padding change nothing."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        pad_token_id=tiny_tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    texts = ["Ada Quill", "I don't know. " * 3, "x"]
    found = scorers.score_texts(texts, str(tmp_path), toxic_label)
    for text, score in zip(texts, found, strict=True):
        with torch.no_grad():
            logits_K = model(torch.tensor([plain_ids(tiny_tokenizer, text)])).logits[0]
        column = list(labels.values()).index(
            toxic_label or ("toxic" if "toxic" in labels.values() else "LABEL_0")
        )
        expected = logits_K.sigmoid()[0] if len(labels) == 1 else logits_K.softmax(-1)[column]
        assert score == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(UserError, match=r"unknown label .*'nice'"):
        scorers.score_texts(texts, str(tmp_path), "nice")


def test_souls_comparison_is_of_one_model(examples: Callable[..., Examples]) -> None:
    rng = np.random.default_rng(0)
    forget, retain = rng.normal(size=40), rng.normal(0.8, size=60)
    result = tofu_soul_ks(named("f", [*forget, math.nan]), named("r", list(retain)))
    expected = ks_2samp(forget, retain)
    assert result.value == pytest.approx(expected.pvalue)
    assert result.facts["D"] == pytest.approx(expected.statistic)
    assert result.as_json()["n_unscored"] == 1
    interval = result.bootstrapped(200, 0)
    assert interval is not None
    assert interval.of == "D"
    assert interval.low < expected.statistic < interval.high
    # By hand: 1 2 | 3 4 never overlap; 1 3 | 1 3 are the same.
    assert KolmogorovSmirnov(np.array([1.0, 2]), np.array([3.0, 4])).value() == 1
    assert KolmogorovSmirnov(np.array([1.0, 3]), np.array([1.0, 3, 1, 3])).value() == pytest.approx(0)
    assert tofu_soul_ks(named("f", [math.nan]), named("r", [1.0])).value is None
