"""The state to resume from: any damage shows, and the state before it takes its place."""

import io
import pickle

import pytest
import torch

from ltat.errors import LtatError
from ltat.training.finite import LIMIT
from ltat.training.run_folder import RunFolder
from ltat.training.state_file import Unusable, before, read_state, write_state
from tests.training.states import state


class Executed:
    """A pickle of this class runs code when loaded carelessly."""

    def __reduce__(self):
        return (pytest.fail, ("the training state executed code",))


def test_a_training_state_never_executes_code(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(pickle.dumps(Executed(), protocol=2))
    with pytest.raises(Unusable):
        read_state(path)
    torch.save(state(x=Executed()), path)
    with pytest.raises(Unusable):
        read_state(path)
    write_state(path, state(x=Executed()))
    with pytest.raises(Unusable):
        read_state(path)


def test_any_flipped_bit_and_any_truncation_shows(tmp_path):
    path = tmp_path / "state.pt"
    write_state(path, state())
    whole = path.read_bytes()
    places = [*range(0, 100), *range(100, len(whole), 37), len(whole) - 1]
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << place % 8
        for content in (bytes(spoilt), whole[:place]):
            path.write_bytes(content)
            with pytest.raises(Unusable):
                read_state(path)
    path.write_bytes(whole)
    assert read_state(path)["epoch"] == 1


def test_the_state_before_the_newest_takes_the_place_of_a_damaged_one(tmp_path):
    said: list[str] = []
    folder = RunFolder(tmp_path, said.append)
    for epoch in (1, 2, 3):
        folder.save_state("state.pt", state(epoch))
    assert folder.load_state("state.pt")["epoch"] == 3 and not said
    for content, word in ((b"damaged", "checksum"), (None, "missing")):
        folder.save_state("state.pt", state(3))
        folder.save_state("state.pt", state(4))
        if content is None:  # a crash between the two renames
            (tmp_path / "state.pt").unlink()
        else:
            (tmp_path / "state.pt").write_bytes(content)
        assert folder.load_state("state.pt")["epoch"] == 3
        assert word in said[-1] and "epoch 3" in said[-1]
        assert folder.load_state("state.pt")["epoch"] == 3  # the good one is the newest now: a write will keep it
    assert len(said) == 2


def test_two_damaged_states_are_told_in_a_sentence_that_names_both(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.save_state("state.pt", state(epoch))
    for path in (tmp_path / "state.pt", before(tmp_path / "state.pt")):
        path.write_bytes(b"")
    with pytest.raises(LtatError, match=r"state\.pt .*state-before\.pt .*delete both"):
        folder.load_state("state.pt")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"ltat state 1 "])
def test_a_state_of_any_garbage_is_told_in_a_sentence(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(LtatError, match="delete it"):
        RunFolder(tmp_path).load_state("state.pt")


def test_a_state_from_before_the_checksum_is_read_and_said_to_have_none(tmp_path):
    said: list[str] = []
    old = state(3)
    old["row"] = old.pop("rows")[-1]
    torch.save(old, tmp_path / "state.pt")
    loaded = RunFolder(tmp_path, said.append).load_state("state.pt")
    assert loaded["rows"] == [{"stage": "student", "epoch": 3}]
    assert len(said) == 1 and "no checksum" in said[0]


ROW = {"stage": "student", "epoch": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": -5},
        {"epoch": True},
        {"epoch": 2},
        {"epoch": "1"},
        {"model": [1]},
        {"optimizer": None},
        {"rows": []},
        {"rows": [1]},
        {"rows": [{}]},
        {"rows": ROW},
        {"rows": [ROW, ROW]},
        {"best": {}},
        {"best": [1]},
        {"best": {"score": "x", "epoch": 1}},
        {"best": {"score": 1.0, "epoch": 7}},
        {"run": [1]},
        {"run": {"settings": 1}},
        {"model": {"w": torch.tensor([1.0, float("nan")])}},
        {"average": {"network": {"w": torch.tensor(float("inf"), dtype=torch.float16)}}},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([1e30])}}}},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([-10 * LIMIT])}}}},
    ],
)
def test_odd_contents_are_unusable_and_no_traceback(tmp_path, changed):
    write_state(tmp_path / "state.pt", state() | changed)
    with pytest.raises(LtatError, match=r"cannot be used .*delete it"):
        RunFolder(tmp_path).load_state("state.pt")


@pytest.mark.parametrize("content", [[1, 2], "x", 3, torch.ones(2)])
def test_a_state_that_is_none_is_unusable(tmp_path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (tmp_path / "state.pt").write_bytes(buffer.getvalue())
    with pytest.raises(LtatError, match="delete it"):
        RunFolder(tmp_path).load_state("state.pt")
