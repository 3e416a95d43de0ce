"""A mask over weights: the weights that it does not allow stay the same bit for bit under any optimizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.core.errors import Fault, UserError, nearest
from expunge.core.files import atomic_write
from expunge.models.fingerprint import model_fingerprint
from expunge.models.outputs import unwrapped
from expunge.optim.rules import Step, StepRule

FORMAT = "expunge.mask/1"


class WeightMask:
    """Which weights may be updated.

    Attributes:
        allowed: by the name of a parameter, a bool tensor of its shape, True = may be updated.
        settings: how it was made: score, options, ratio, seed; plain values.
        model: fingerprint of the model that it was made for.
    """

    def __init__(self, allowed: Mapping[str, Tensor], settings: Mapping[str, Any], model: str) -> None:
        self.allowed, self.settings, self.model = dict(allowed), dict(settings), model

    @property
    def num_allowed(self) -> int:
        """Number of weights that may be updated."""
        return sum(int(allowed.sum()) for allowed in self.allowed.values())

    @property
    def num_weights(self) -> int:
        """Number of weights that the mask covers."""
        return sum(allowed.numel() for allowed in self.allowed.values())

    def save(self, path: Path) -> None:
        """Write the mask as a safetensors file of bools, with settings and fingerprint in its metadata."""
        head: dict[str, Any] = {"settings": self.settings, "model": self.model}
        head |= {"num_allowed": self.num_allowed, "num_weights": self.num_weights}
        metadata = {"format": FORMAT, "mask": json.dumps(head, sort_keys=True, allow_nan=False)}
        tensors = {name: allowed.contiguous().cpu() for name, allowed in self.allowed.items()}
        atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: Path, model: nn.Module, fingerprint: str | None = None) -> WeightMask:
        """Read a mask that was made for this model.

        Args:
            path: a file that `save` wrote.
            model: the model before unlearning.
            fingerprint: of the model, if known; else it is computed from the weights.

        Raises:
            UserError: the file does not exist, is not a mask, or is the mask of another model. All different
                names, shapes or weights are reported together.
        """
        if not path.is_file():
            raise UserError(
                f"there is no mask file {path}",
                f"check the path; the folder searched is {path.parent.resolve()}",
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                allowed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != FORMAT or any(
                tensor.dtype is not torch.bool for tensor in allowed.values()
            ):
                raise UserError(
                    f"{path} is not a mask over weights", "give a mask.safetensors that expunge wrote"
                )
            head = json.loads(metadata["mask"])
            mask = cls(allowed, head["settings"], head["model"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"the mask {path} is damaged: {error}", "create the mask again") from error
        mask.check(model, fingerprint, str(path))
        return mask

    def check(self, model: nn.Module, fingerprint: str | None = None, source: str = "the mask") -> None:
        """Refuse a model that is not the mask's model: names, shapes or weights differ."""
        parameters = {name: p for name, p in unwrapped(model).named_parameters() if p.requires_grad}
        faults = []
        for name in sorted(set(self.allowed) - set(parameters)):
            near = nearest(name, list(parameters), count=1)
            hint = f"the nearest name is {near[0]}" if near else ""
            faults.append(Fault(f"{source} has {name}, which the model does not train", hint))
        hint = "create the mask with the same adapter and the same frozen parameters"
        for name, p in sorted(parameters.items()):
            if name not in self.allowed:
                faults.append(Fault(f"the model trains {name}, which {source} does not have", hint))
            elif self.allowed[name].shape != p.shape:
                shapes = f"{list(self.allowed[name].shape)} in {source}, {list(p.shape)} in the model"
                faults.append(Fault(f"{name}: {shapes}"))
        if not faults and (found := fingerprint or model_fingerprint(unwrapped(model))) != self.model:
            faults.append(
                Fault(
                    f"{source} was made for weights with fingerprint {self.model}, the model has {found}",
                    "names and shapes agree",
                )
            )
        if faults:
            hidden = [Fault(f"... and {len(faults) - 5} more")] if len(faults) > 5 else []
            advice = Fault(
                f"{source} was made for another model",
                "give the mask that was made for this model, or create it again from its score",
            )
            raise UserError.of([advice, *faults[:5], *hidden])

    def rule(self) -> MaskRule:
        """The rule that makes an optimizer respect this mask."""
        return MaskRule(self)


class MaskRule(StepRule):
    """Makes an optimizer respect a mask. Place it after the rules that change gradients.

    Gradients of frozen weights are set to 0 before clipping, so the clip norm counts only the other weights
    and the moments stay 0. After the optimizer's step the frozen weights are written back. This undoes weight
    decay, earlier momentum and anything else: with any torch optimizer they stay the same bit for bit. Their
    values are stored only during the step, when no activations are in memory.
    """

    def __init__(self, mask: WeightMask) -> None:
        self.mask = mask
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        self._values: list[Tensor] = []

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Register the hooks around the optimizer's step."""
        parameters = dict(unwrapped(model).named_parameters())
        self._held = [
            (parameters[name], ~allowed)
            for name, allowed in self.mask.allowed.items()
            if not bool(allowed.all())
        ]
        optimizer.register_step_pre_hook(lambda *_: self._hold())
        optimizer.register_step_post_hook(lambda *_: self._release())

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Set the gradients of frozen weights to 0."""
        self._clear()

    @torch.no_grad()
    def _clear(self) -> None:
        self._held = [(parameter, frozen.to(parameter.device)) for parameter, frozen in self._held]
        for parameter, frozen in self._held:
            if parameter.grad is not None:
                # Not a multiplication: 0 times an infinite gradient is not 0.
                parameter.grad.masked_fill_(frozen, 0.0)

    def _hold(self) -> None:
        self._clear()
        self._values = [parameter.detach()[frozen] for parameter, frozen in self._held]

    @torch.no_grad()
    def _release(self) -> None:
        for (parameter, frozen), value in zip(self._held, self._values, strict=True):
            parameter.masked_scatter_(frozen, value)
        self._values = []
