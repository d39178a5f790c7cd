"""The loop over the batches of an epoch."""

import pytest
import torch

from ltat.errors import LtatError
from ltat.training import Trainer, prepare
from ltat.training.finite import loss_is_due
from tests.training.tiny import tiny_config


def test_on_a_gpu_the_loss_is_checked_now_and_then_and_at_the_end_of_an_epoch(monkeypatch):
    gpu = torch.device("cuda")
    assert not loss_is_due(gpu, 3) and loss_is_due(gpu, 49) and loss_is_due(torch.device("cpu"), 3)
    trainer = Trainer(prepare(tiny_config("method=pgd-at", "train.epochs=1", "optim.lr=1e30")).student)
    monkeypatch.setattr("ltat.training.trainer.loss_is_due", lambda device, index: False)
    with pytest.raises(LtatError, match="the loss of stage 'student': no longer finite"):
        trainer.run_epoch()
