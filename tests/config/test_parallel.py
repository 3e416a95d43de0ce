"""The group `parallel`: choices, what a launcher asks for, and what split weights exclude."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.config.validate import load_config
from expunge.core.engine import Engine, engine_of
from expunge.core.errors import UserError

RUN = ("experiment=unlearn/mini/default", "task_name=x", "trainer=NPO")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def faults_of(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config("unlearn", (*RUN, *overrides))
    return str(caught.value)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_offload"])
def test_each_engine_composes_and_changes_no_identity(name: str) -> None:
    cfg = load_config("unlearn", (*RUN, f"parallel={name}"))
    engine = engine_of(cfg.section("parallel"), {})
    assert (engine.kind, engine.cpu_offload) == (name.partition("_")[0], name.endswith("offload"))
    assert cfg.identity() == load_config("unlearn", RUN).identity()


def test_the_launcher_is_an_equal_way_in() -> None:
    assert engine_of({}, {}) == Engine("ddp")
    assert engine_of({}, FSDP) == Engine("fsdp2")
    told = {**FSDP, "FSDP_OFFLOAD_PARAMS": "true", "FSDP_RESHARD_AFTER_FORWARD": "false",
            "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer, OtherLayer"}  # fmt: skip
    expected = Engine("fsdp2", True, False, ("LlamaDecoderLayer", "OtherLayer"))
    assert engine_of({}, told) == expected


@pytest.mark.parametrize(
    ("section", "environment", "words"),
    [
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1"),
        ({}, {**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "gradient_checkpointing=true"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"kind": "ddp"}, FSDP, "parallel.kind=ddp"),
        ({"kind": "fsdp2", "cpu_offload": True}, FSDP, "cpu_offload=False"),
    ],
)
def test_what_the_launcher_cannot_have(section: Any, environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        engine_of(section, environment)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("parallel=fdsp2",), "fsdp2"),
        (("parallel.kind=zero3",), "parallel.kind"),
        (("parallel=fsdp2", "parallel.offload=true"), "parallel.offload"),
        (("parallel=ddp", "parallel.cpu_offload=true"), "there is no key 'parallel.cpu_offload'"),
        (("parallel=fsdp2", "mask=random"), "trainer.mask"),
        (("parallel=fsdp2", "optimizer=sam"), "trainer.optimizer.rules.sam"),
        (("parallel=fsdp2", "combine=gru", "retain=nll"), "combine"),
        (("parallel=fsdp2", "trainer=l1_sparse"), "l1"),
        (("parallel=fsdp2", "optimizer=adamw_8bit"), "adamw:adamw_8bit"),
        (("parallel=fsdp2", "trainer.args.optim=galore_adamw"), "galore_adamw"),
        (("parallel=fsdp2", "trainer.args.optim=adafactor"), "adafactor"),
        (("parallel=fsdp2", "optimizer=sophia"), "sophia"),
        (("parallel=fsdp2", "model.model_args.master_dtype=bfloat16"), "master_dtype"),
        (("parallel=fsdp2", "model.model_args.torch_dtype=float16"), "bfloat16"),
        (("parallel=fsdp2", "model/adapter=lora", "model.adapter.merge=true"), "model.adapter.merge"),
        (("parallel=fsdp2", "procedure=task_vector"), "procedure"),
        (("parallel=fsdp2", "+trainer.args.save_on_each_node=true"), "save_on_each_node"),
    ],
)  # fmt: skip
def test_what_split_weights_exclude_is_found_by_validation(overrides: tuple[str, ...], words: str) -> None:
    assert words in faults_of(*overrides)
