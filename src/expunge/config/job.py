"""The job of a configuration, whose memory and time are computed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge.config.method import losses_of
from expunge.config.model_keys import DTYPES
from expunge.config.procedure import stages_of
from expunge.core.config import Config
from expunge.core.handlers import Signature
from expunge.core.job import Adapter, Job, Load, Placement, Reference, Shape
from expunge.core.needs import Need, independent, parse_need

DEFAULT_RANK = 8
NF4_WIDTH = 0.5 + 0.127 / 8
"""Bytes of a weight in 4 bits with scales that are quantised too (arXiv:2305.14314 section 3)."""
MOMENTS = {"8bit": 2.04, "adafactor": 0.01, "sgd": 0.0, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0}
"""Bytes per weight that an optimizer stores, by a part of its name; others store two float32 moments."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of a side's rows.

    Attributes:
        tokens: number of tokens of each row, in descending order.
        labels: number of labels of each row, in descending order.
        source: "measured" = of the data, or "assumed".
    """

    tokens: tuple[int, ...] = (256,)
    labels: tuple[int, ...] = (64,)
    source: str = "assumed"

    def load(self, name: str, rows: int) -> Load:
        """The micro-batch of the longest rows, with the labels of those that have the most."""
        longest, most = self.tokens[:rows], self.labels[:rows]
        total = sum(most) * rows // len(most)
        padded = rows > 1 and (self.source == "assumed" or len(set(longest)) > 1)
        return Load(name, rows, longest[0], total, padded=padded)


ASSUMED = Lengths()


def job_of(cfg: Config, shape: Shape, lengths: Mapping[str, Lengths] | None = None) -> Job:
    """The job of a configuration that trains.

    Args:
        cfg: a validated configuration.
        shape: shape of the model.
        lengths: lengths of the rows by side; for other sides they are assumed.
    """
    losses = [] if stages_of(cfg) else losses_of(cfg)
    needs = [[parse_need(name) for name in loss.positional] for loss in losses]
    needs = needs or [[parse_need("retain_logp_BN")]]
    compute = _width(cfg.get("model.model_args.torch_dtype", cfg.get("model.model_args.dtype")))
    if cfg.get("trainer.args.bf16") or cfg.get("trainer.args.fp16"):
        compute = 2
    master = cfg.get("model.model_args.master_dtype")
    adapter = adapter_of(cfg, shape)
    trained = adapter.rank * (adapter.inputs + adapter.outputs) * shape.layers if adapter else shape.total
    if adapter is None and (patterns := _trained_patterns(cfg, losses)):
        trained = _matching(shape, patterns) or trained
    frozen = shape.total - (0 if adapter else trained)
    reference = _reference(cfg, needs)
    return Job(
        shape=shape,
        trained=trained,
        frozen=frozen,
        groups=_groups(cfg, needs, reference, lengths or {}),
        micro_batches=int(cfg.get("trainer.args.gradient_accumulation_steps", 1)),
        master_width=4 if adapter else _width(master),
        frozen_width=_frozen_width(cfg, shape, compute if adapter and master is None else _width(master)),
        compute_width=compute,
        moments_width=moments_width(cfg),
        reference=reference,
        checkpointing=bool(cfg.get("trainer.args.gradient_checkpointing", False)),
        attention_mask=not str(cfg.get("model.model_args.attn_implementation") or "").startswith("flash"),
        adapter=adapter,
        engine=placement_of(cfg),
        sequential=bool(cfg.switches("driver").get("sequential_terms", True)),
    )


def placement_of(cfg: Config) -> Placement:
    """How the weights are placed on several ranks."""
    return "fsdp2_offload" if cfg.engine.cpu_offload else cfg.engine.kind


def optimizer_steps(cfg: Config, rows: int | None, ranks: int) -> tuple[int, int] | None:
    """Optimizer steps of the run and of an epoch; None if the number of rows is unknown.

    Args:
        cfg: the configuration of a training.
        rows: number of rows of an epoch.
        ranks: W.
    """
    limit = cfg.get("trainer.args.max_steps")
    if rows is None:
        return (limit, limit) if isinstance(limit, int) and limit > 0 else None
    micro = math.ceil(rows / (int(cfg.get("trainer.args.per_device_train_batch_size", 8)) * ranks))
    an_epoch = max(1, math.ceil(micro / int(cfg.get("trainer.args.gradient_accumulation_steps", 1))))
    if isinstance(limit, int) and limit > 0:
        return limit, an_epoch
    return math.ceil(float(cfg.get("trainer.args.num_train_epochs", 3)) * an_epoch), an_epoch


def layer_widths(shape: Shape) -> dict[str, tuple[int, int]]:
    """Widths of input and output of a layer's linear layers, by the names of Llama."""
    wide, feed = shape.hidden, shape.intermediate
    gate = {"gate_proj": (wide, feed)} if shape.gated else {}
    return {
        "q_proj": (wide, shape.queries),
        "k_proj": (wide, shape.keys),
        "v_proj": (wide, shape.keys),
        "o_proj": (shape.queries, wide),
        "up_proj": (wide, feed),
        "down_proj": (feed, wide),
        **gate,
    }


def adapter_of(cfg: Config, shape: Shape) -> Adapter | None:
    """The adapter that is trained; None if the weights of the model are trained."""
    section = cfg.section("model.adapter")
    if section.get("type") not in ("lora", "qlora") and section.get("path") is None:
        return None
    widths = layer_widths(shape)
    asked = section.get("target_modules")
    chosen = [widths[name] for name in asked if name in widths] if isinstance(asked, (list, tuple)) else []
    chosen = chosen or list(widths.values())
    dropout = section.get("dropout")
    return Adapter(
        rank=int(section.get("r") or DEFAULT_RANK),
        inputs=sum(width for width, _ in chosen),
        outputs=sum(width for _, width in chosen),
        dropout=dropout is None or float(dropout) > 0,
    )


def moments_width(cfg: Config) -> float:
    """Bytes that the optimizer stores per trained weight."""
    handler = cfg.get("trainer.optimizer.handler")
    name = str(handler).rpartition(":")[2] if handler else str(cfg.get("trainer.args.optim", "adamw"))
    if name == "sgd" and cfg.get("trainer.optimizer.momentum"):
        return 4.0
    return next((width for part, width in MOMENTS.items() if part in name), 8.0)


def _groups(
    cfg: Config, needs: Sequence[Sequence[Need]], reference: Reference, lengths: Mapping[str, Lengths]
) -> tuple[tuple[Load, ...], ...]:
    rows = int(cfg.get("trainer.args.per_device_train_batch_size", 8))
    live = reference in ("adapter_off", "frozen_adapter", "frozen")
    found = []
    for members in independent(needs):
        read = [need for number in members for need in needs[number] if need.side]
        loads = []
        for side in dict.fromkeys(need.side for need in read):
            own = [need for need in read if need.side == side]
            load = lengths.get(own[0].data_side, ASSUMED).load(side, rows)
            loads.append(
                replace(
                    load,
                    own=any(need.from_pass and not need.reference for need in own),
                    reference=live and any(need.from_reference for need in own),
                    whole_distribution=any(need.source == "logits" for need in own),
                )
            )
        found.append(tuple(loads))
    # A group without sides has no activations.
    return tuple(group for group in found if group)


def _reference(cfg: Config, needs: Sequence[Sequence[Need]]) -> Reference:
    """What `models.adapter_reference.plan_for` will choose, as far as the configuration shows."""
    read = [need for term in needs for need in term if need.from_reference]
    asked, adapter = str(cfg.get("reference") or "auto"), cfg.section("model.adapter")
    if not read:
        return "none"
    if asked in ("cached", "adapter_off", "frozen_adapter", "frozen"):
        return asked  # type: ignore[return-value]  # the line above narrows it
    if all(need.cacheable for need in read):
        return "cached"
    if adapter.get("path") is not None:
        return "frozen_adapter"
    return "adapter_off" if adapter.get("type") in ("lora", "qlora") else "frozen"


def _frozen_width(cfg: Config, shape: Shape, plain: int) -> float:
    """Bytes per frozen weight. In 4 bits are the linear layers; embeddings and norms are float32."""
    if cfg.get("model.adapter.type") != "qlora":
        return float(plain)
    quantized = shape.layers * shape.matrices
    return (quantized * NF4_WIDTH + (shape.total - quantized) * 4) / shape.total


def _trained_patterns(cfg: Config, losses: Sequence[Signature]) -> list[str]:
    """The regular expressions of the parameters that a method trains; empty = all."""
    given = cfg.get("trainer.method_args.trainable_params_regex")
    own = losses[0].keyword.get("trainable_params_regex") if losses else None
    patterns = given if given is not None else own
    listed = [patterns] if isinstance(patterns, str) else patterns
    return [str(pattern) for pattern in listed] if isinstance(listed, (list, tuple)) else []


def _matching(shape: Shape, patterns: Sequence[str]) -> int:
    """Number of weights with matching names; the names are those of Llama."""
    names = {
        f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.weight": rows * columns
        for layer in range(shape.layers)
        for name, (rows, columns) in layer_widths(shape).items()
    }
    return sum(
        size for name, size in names.items() if any(re.fullmatch(pattern, name) for pattern in patterns)
    )


def _width(dtype: Any) -> int:
    """Bytes of a number of a dtype; an unknown name counts as float32."""
    name = DTYPES.get(str(dtype).removeprefix("torch."), "float32")
    return {"float64": 8, "float32": 4}.get(name, 2)
