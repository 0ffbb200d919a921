"""Half precision on CUDA: gradients are scaled up on their way, because small ones vanish in float16.

torchnet's Engine calls `loss.backward()` inside `optimizer.step(closure)`, where a GradScaler has no place of
its own. So the loss of a step is multiplied by the scale, and the optimizer divides by it before it updates.
Without --dtype half the scaler is disabled, and the scale is 1.
"""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layers import Function, Sample


class ScaledSGD(torch.optim.SGD):
    """SGD that steps through a GradScaler; gradients that overflow change nothing."""

    def __init__(self, params: Any, scaler: torch.amp.GradScaler, **settings: Any):
        super().__init__(params, **settings)
        self.scaler = scaler

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        if closure is None:  # from the GradScaler
            super().step()
            return
        closure()
        self.scaler.step(self)
        self.scaler.update()


def scaled(h: Function, scaler: torch.amp.GradScaler) -> Function:
    """The step with its loss multiplied by the scale."""
    def h_scaled(sample: Sample) -> tuple[Tensor, Any]:
        loss, output = h(sample)
        return scaler.scale(loss), output
    return h_scaled
