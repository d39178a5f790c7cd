"""A run whose attack and update are captured graphs is the run of neither, and says whether its attack is one."""

import pytest
import torch

from ltat.config import load_config
from ltat.engine.graphs import Graphs
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.models import load_model
from ltat.training import Trainer, prepare, train
from ltat.training.launch_report import describe_attack, given_up
from ltat.training.preparing import check_graph
from tests.attacks.recording import Recorder, UpdateRecorder
from tests.marks import needs_cuda
from tests.training.tiny import tiny_config

SMALL_LAST_BATCH = ("train.drop_last=false", "train.epochs=2", "select.set=none")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What captures in place of CUDA; a CPU is not refused."""
    recorder = Recorder()
    monkeypatch.setattr("ltat.engine.network.graphs_for", lambda asked, device: Graphs(recorder) if asked else None)
    monkeypatch.setattr("ltat.engine.captured_update.CudaRecorder", lambda device: UpdateRecorder())
    monkeypatch.setattr("ltat.training.preparing.check_graph", lambda config, device: None)
    return recorder


def trained(*assignments: str) -> tuple[Trainer, str]:
    plan = prepare(tiny_config(*SMALL_LAST_BATCH, *assignments))
    trainer = Trainer(plan.student)
    said = describe_attack(trainer, plan.data)
    for _ in range(2):
        trainer.run_epoch()
    return trainer, said


@pytest.mark.parametrize(
    "settings",
    [
        *("method=at-bsl", "method=trades", "method=self-distill", "method=robal robal.tau_p=0.5"),
        *("method=at-bsl radius.share=0.3 radius.ramp_share=0.5", "method=robal attack.loss=kl-self"),
    ],
)
def test_a_captured_run_ends_with_the_weights_of_the_eager_run(settings: str, recorder: Recorder):
    captured, said = trained(*settings.split(), "train.graph=true")
    eager, _ = trained(*settings.split(), "train.graph=false")
    assert said.endswith(", one CUDA graph") and len(captured.network.graphs) in (2, 3)
    theirs = eager.stage.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in captured.stage.model.state_dict().items())


def test_a_run_that_cannot_be_captured_says_why_and_trains(recorder: Recorder):
    trainer, said = trained("method=at-bsl", "attack.mode=train", "train.graph=true")
    assert said.endswith(", step by step: mode=train")
    assert recorder.captured == 0 and trainer.epoch == 2


def test_with_the_setting_off_nothing_is_captured(recorder: Recorder):
    trainer, said = trained("method=at-bsl", "train.graph=false")
    assert recorder.captured == 0 and trainer.network.graphs is None and "graph" not in said


@pytest.mark.parametrize("settings", [(), ("train.graph=auto",), ("train.graph=auto", "train.compile=true")])
def test_on_a_cpu_nothing_is_captured_by_itself_and_nothing_is_said_of_it(settings: tuple[str, ...], monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    trainer = Trainer(prepare(tiny_config("method=at-bsl", "select.set=none", *settings)).student)
    assert trainer.stage.config.train.graph == "auto" and trainer.network.graphs is None
    assert given_up(trainer) == {}


def test_a_recipe_of_the_time_of_true_and_false_is_read_as_before():
    for word, value in (("true", True), ("false", False), ("auto", "auto")):
        assert tiny_config(f"train.graph={word}").config.train.graph is value
    assert (
        load_config(
            lambda name: find_method(name).Config, recipe={"train": {"graph": True}, "method": "at-bsl"}
        ).config.train.graph
        is True
    )
    with pytest.raises(LtatError, match=r"train\.graph='maybe' is not possible: it must be true or false or 'auto'"):
        tiny_config("train.graph=maybe")


def test_what_is_said_before_a_captured_run_changes_nothing(recorder: Recorder):
    plan = prepare(tiny_config("method=trades", "train.graph=true", "attack.mode=train", "select.set=none"))
    trainer = Trainer(plan.student)
    before = {name: value.clone() for name, value in trainer.stage.model.state_dict().items()}
    describe_attack(trainer, plan.data)
    assert all(torch.equal(value, before[name]) for name, value in trainer.stage.model.state_dict().items())


def test_a_captured_run_and_a_compiled_one_are_told_apart():
    asked = tiny_config("train.graph=true", "train.compile=true")
    with pytest.raises(LtatError, match=r"train\.compile"):
        check_graph(asked.config, torch.device("cuda"))
    check_graph(tiny_config("train.graph=true").config, torch.device("cuda", 0))
    for device in ("cpu", "cuda"):  # left to itself, the engine finds out and says why not
        check_graph(tiny_config("train.graph=auto", "train.compile=true").config, torch.device(device))


@needs_cuda
@pytest.mark.parametrize(("method", "precision"), [("at-bsl", "fp16"), ("trades", "fp32"), ("self-distill", "bf16")])
def test_a_captured_run_on_a_gpu_ends_with_the_weights_of_the_eager_run(method: str, precision: str, tmp_path):
    for name, graph in (("captured", "true"), ("eager", "false")):
        own = ("train.device=cuda", "train.deterministic=true", f"train.precision={precision}", f"train.graph={graph}")
        train(tiny_config(f"method={method}", *own, *SMALL_LAST_BATCH), tmp_path / name)
    captured, eager = (load_model(tmp_path / name / "last").state_dict() for name in ("captured", "eager"))
    assert all(torch.equal(captured[name], eager[name]) for name in captured)
