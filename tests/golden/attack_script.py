"""``ltat.attacks.pgd`` and ``ltat.evaluate`` as a script calls them, on ``run/last.safetensors``."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import ltat
from ltat.attacks import ThreatModel, pgd
from ltat.data import load_dataset

LINF = ThreatModel("linf", 0.15)
L2 = ThreatModel("l2", 0.5)
VARIANTS = {
    "plain": {},
    "steps": {"steps": 3, "step_size": 0.05},
    "none": {"steps": 0},
    "l2": {"threat": L2, "start": "uniform"},
    "half": {"precision": "bf16"},
    "half-unfolded": {"precision": "bf16", "fold": False},
    "folded": {"fold": True},
    "frozen": {"mode": "train_frozen_stats"},
    **{start: {"start": start} for start in ("gauss", "uniform", "uniform_clamp", "pos_uniform", "zero")},
    "radii": {
        "threat": ThreatModel("linf", torch.linspace(0.05, 0.2, 50)),
        "step_size": torch.linspace(0.01, 0.05, 50),
    },
}


def main() -> None:
    model = ltat.load_model("run/last.safetensors")
    digits = load_digits()
    x = torch.tensor(digits.images[:50] / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target[:50])
    attacked = {}
    for name, options in VARIANTS.items():
        generator = torch.Generator().manual_seed(7)
        attacked[name] = pgd(model, x, y, **{"threat": LINF, "steps": 4, "generator": generator, **options})
    save_file(attacked, "attacked.safetensors")
    evaluation = ltat.evaluate(model, load_dataset("digits"), attacks=["clean", "pgd3"], threat=LINF, n_examples=50)
    Path("evaluation.json").write_text(json.dumps(evaluation.to_json()))


if __name__ == "__main__":
    main()
