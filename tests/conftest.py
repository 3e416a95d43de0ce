"""Shared fixtures: a tokenizer and a model built from a seed, and the folder of real data, if present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CORPUS = [
    "The author's full name is Ada Quill.",
    "Ada Quill was born in Port Verdant in 1952 and writes mystery novels.",
    "What genre does Ada Quill write in? Who are the parents of Ada Quill?",
    "You are a helpful assistant.",
    "I don't know. system user assistant",
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The given folder of real data, models and golden values."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder of real data is not there: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer with a Llama-3-style chat template, trained on five sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Any) -> Callable[..., Any]:
    """Makes small Llama models with random weights: `tiny_model(seed=0, **config)`, float32, eval mode."""

    def build(seed: int = 0, **config: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        settings: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "bos_token_id": tiny_tokenizer.bos_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "attn_implementation": "sdpa",
            "initializer_range": 0.2,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**{**settings, **config})).eval()

    return build
