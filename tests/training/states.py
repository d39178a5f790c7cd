"""A training state of one epoch, as small as one can be."""

from typing import Any

import torch


def state(epoch: int = 1, **changed: Any) -> dict[str, Any]:
    rows = [{"stage": "student", "epoch": number} for number in range(1, epoch + 1)]
    return {
        "epoch": epoch,
        "model": {"w": torch.arange(100.0)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(100)}}, "param_groups": []},
        "scaler": {},
        "method": {},
        "average": {},
        "rows": rows,
        "best": {"score": 10.0, "epoch": epoch},
        **changed,
    }
