"""The bench of several ranks: what is sent is counted right, and two ranks are measured."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import nn

from bench import distributed
from bench._volume import BATCH, sent_in_update
from bench.rows import read_rows
from ltat.models import build_model


@pytest.mark.parametrize("sync_bn", [True, False])
def test_every_gradient_is_sent_once_and_two_messages_for_each_norm(sync_bn: bool):
    model = build_model("small", num_classes=10)
    norms = [norm.num_features for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    sent = sent_in_update("small", sync_bn)
    assert sum(sent.pop("gradients")) == 4 * sum(weight.numel() for weight in model.parameters())
    assert sent.pop("logits") == [4 * 10 * BATCH]
    if sync_bn:
        forward, backward = [4 * (2 * n + 1) for n in norms], [4 * 2 * n for n in reversed(norms)]
        assert sent == {"batch norm, forward": forward, "batch norm, backward": backward}
    else:
        assert sent == {"statistics of batch norm": [4 * 2 * sum(norms)]}


def test_two_ranks_are_measured_beside_one_and_beside_ddp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LTAT_BENCH_RESULTS", str(tmp_path))
    done = CliRunner().invoke(distributed.main, ["--quick", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    found: dict[str, set[str]] = {}
    for row in read_rows(tmp_path / "distributed.csv"):
        found.setdefault(row.case, set()).add(row.candidate)
    one = {"1 rank, 1 thread", "1 rank, 2 threads"}
    assert found["digits, 64 images, step"] == one | {"2 ranks", "2 ranks, sync_bn=false"}
    assert found["digits, 32 images a rank, step"] == {"1 rank, 32 images", "2 ranks, 64 images"}
    assert {"after backward", "ltat", "DDP"} <= found["small, 8 images, exposed"]
