"""Models with random weights and rows of random tokens: benchmarks measure cost, not learning."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, pairs_of
from expunge.data.rows import Row, RowSet
from expunge.lm import runtime
from expunge.methods.objective import Objective
from expunge.models.reference import CachedReference, FrozenCopy
from expunge.training.arguments import training_arguments
from expunge.training.loop import Training
from expunge.training.pace import peak_memory_mb

PAD = 0


def llama(hidden: int, layers: int, vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """A Llama in float32 on this machine's device, with tied embeddings.

    Heads have a width of 64; the inner width is 11/4 of the hidden width.
    """
    torch.manual_seed(seed)
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(runtime.device())


def rows(
    count: int, name: str, vocabulary: int, lengths: tuple[int, ...], answer: float = 0.5
) -> list[Encoded]:
    """Rows of random tokens.

    Args:
        count: number of rows.
        name: each name gives other tokens.
        vocabulary: size of the model's vocabulary.
        lengths: lengths of the rows, used in turn, so that any multiple of them has the same mix.
        answer: share of a row's tokens that are labels.
    """
    draw = runtime.generator("rows", name)
    made = []
    for row in range(count):
        size = lengths[row % len(lengths)]
        prompt = max(1, round(size * (1 - answer)))
        ids = torch.randint(1, vocabulary, (size,), generator=draw).tolist()
        mask = tuple(position >= prompt for position in range(size))
        made.append(Encoded(tuple(ids), mask, size - 1, prompt, f"{name}{row}", row))
    return made


def dataset(
    count: int, name: str, vocabulary: int, lengths: tuple[int, ...], alternates: bool = False
) -> Dataset:
    """Rows of random tokens as a data set; with `alternates` each row also has a random alternate answer."""
    encoded = rows(count, name, vocabulary, lengths)
    row_set = RowSet.of(name, [Row(item.row_id, item.row, {}) for item in encoded], "random")
    return Dataset(
        name, row_set, encoded, name, rows(count, "alternate", vocabulary, lengths) if alternates else None
    )


class Clock(TrainerCallback):
    """Seconds from the end of an optimizer step to the end of the next; includes batches and log records."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def unlearn(
    model: nn.Module,
    forget: Dataset,
    retain: Dataset,
    *,
    objective: Objective,
    batch_size: int,
    steps: int | None = None,
    reference: CachedReference | FrozenCopy | None = None,
    **driver: Any,
) -> dict[str, float]:
    """Train for one epoch, or for `steps` steps.

    Returns:
        `seconds_per_step` (median) and `microseconds_per_token` (all steps together), both without the first
        step; `peak_memory_mb` of this process so far.
    """
    clock = Clock()
    length = {"num_train_epochs": 1} if steps is None else {"max_steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "per_device_train_batch_size": batch_size,
            "learning_rate": 1e-5,
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        args = training_arguments({**chosen, **length}, Path(folder), len(forget))
        training = Training(
            model,
            args,
            objective=objective,
            dataset=PairedDataset(
                forget, retain, pairs_of(forget, retain, seed=0, n_epochs=1), sides=objective.sides
            ),
            collate=PairCollator(PAD),
            reference=reference,
            callbacks=[clock],
            **driver,
        )
        training.run()
    tokens = [len(item.input_ids) for side in (forget, retain) for item in side.encoded]
    assert len(clock.ends) > 1, "the first step is not measured, so at least two are needed"
    seconds = sorted(after - before for before, after in itertools.pairwise(clock.ends))
    per_step = 2 * batch_size * sum(tokens) / len(tokens)
    return {
        "seconds_per_step": seconds[len(seconds) // 2],
        "microseconds_per_token": 1e6 * sum(seconds) / len(seconds) / per_step,
        "peak_memory_mb": peak_memory_mb(),
    }
