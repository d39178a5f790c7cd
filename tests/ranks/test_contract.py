"""Small facts that hold on several ranks: what is shared, joined, averaged, agreed on, and refused."""

import json

import pytest
from torch import tensor

from ltat.data.loaders import choice
from ltat.errors import LtatError
from ltat.ranks import Ranks, Share
from ltat.training.environment import pick_device
from tests.data.betons import noise
from tests.ranks.contract import FACTS, loader_of
from tests.ranks.launching import torchrun


@pytest.fixture(scope="module", params=[2, 3])
def failed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The facts that failed on any rank, by name: one launch for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, "tests.ranks.contract", str(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for rank in range(request.param):
        found |= json.loads((folder / f"{rank}.json").read_text())
    return found


@pytest.mark.parametrize("fact", FACTS)
def test_several_ranks_keep_the_contract(fact: str, failed: dict[str, str]):
    assert fact not in failed, failed[fact]


@pytest.mark.parametrize(("total", "size"), [(7, 3), (2, 3), (64, 2), (0, 2), (5, 1)])
def test_shares_leave_out_no_row_and_differ_by_one_at_most(total: int, size: int):
    shares = [Ranks(rank, size).share(total) for rank in range(size)]
    rows = [row for share in shares for row in range(total)[share.rows]]
    assert rows == list(range(total)) and {share.total for share in shares} == {total}
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("rank", range(4))
def test_a_last_batch_that_leaves_a_rank_without_an_image_is_refused_on_every_rank(rank: int):
    split, ranks = noise(n=23), Ranks(rank, 4)  # 20 images and 3
    with pytest.raises(LtatError, match=r"a batch of 3 .*drop_last=true"):
        loader_of("resident", split, 20, ranks=ranks)
    loader_of("resident", split, 20, ranks=ranks, drop_last=True)
    last = list(loader_of("resident", split, 19, ranks=ranks).epoch(1))[-1]  # 4 images
    assert len(last.images) == 1


def test_one_rank_alone_sends_nothing():
    alone, rows = Ranks(), tensor([1.0, 2.0])
    alone.sum_([rows])
    alone.mean_([rows])
    assert alone.joined(rows, Share(0, 2, 2)) is rows and alone.told("a") == "a" and alone.any_(True, False) == (1, 0)


def test_one_gpu_for_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    current = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    with pytest.raises(LtatError, match="device 'cuda:1' is one GPU and there are 2 ranks; use --device cuda"):
        pick_device("cuda:1", Ranks(0, 2))
    with pytest.raises(LtatError, match="rank 2 needs a GPU of its own and there are 2; start 2 per machine"):
        pick_device("cuda", Ranks(2, 3, local=2))
    assert str(pick_device("auto", Ranks(3, 4, local=1))) == "cuda:1" and current == [1]


def test_ranks_of_one_machine_do_not_count_its_memory_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltat.memory.free_memory", lambda: 800)
    monkeypatch.setattr(choice, "processes_here", lambda: 4)
    assert choice.free_memory(pick_device("cpu")) == 200
