"""Post-hoc logit adjustment: what is evaluated, what is attacked, and what is said about it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from ltat import evaluate
from ltat.attacks import ThreatModel
from ltat.cli.main import main
from ltat.data import Split
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import WorkingCopy
from ltat.errors import LtatError
from ltat.evaluation import Adjustment, adjusted
from ltat.evaluation.adjustment import CORRECTED_TWICE
from ltat.models import CosineClassifier, build_model, put_head, save_model

COUNTS = [500, 300, 200, 100, 90, 80, 60, 50, 30, 10]
ADJUST = Adjustment(1.3, COUNTS)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("small", num_classes=10, in_channels=1).eval()


def images(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def split(n: int = 40) -> Split:
    return Split(images(n).permute(0, 2, 3, 1).numpy(), np.arange(n) % 10, 10, np.arange(n))


def by_hand(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    share = np.array(COUNTS) / sum(COUNTS)
    return model(x).double() - torch.from_numpy(1.3 * np.log(share))


def test_the_adjusted_evaluation_is_the_computation_by_hand():
    model, data = network(), split()
    found = evaluate(model, data, attacks="clean", adjust=ADJUST)
    logits = by_hand(model, images(40).float() / 255)
    expected = logits.argmax(1).numpy() == data.labels
    np.testing.assert_array_equal(found.outcomes["clean"].correct, expected)
    assert (model(images(40).float() / 255).argmax(1) != logits.argmax(1)).any()


class Marking(nn.Module):
    """Logits of the first pixels; keeps what gradient reached them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.gradients: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.scale * x.flatten(1)[:, :10]
        if logits.requires_grad:
            logits.register_hook(self.gradients.append)
        return logits


def test_the_attack_climbs_the_adjusted_logits():
    model, label = Marking(), 9
    one = Split(np.full((1, 8, 8, 1), 128, np.uint8), np.array([label]), 10, np.arange(1))
    evaluate(model, one, attacks="pgd1", threat=ThreatModel(eps=1e-6), adjust=ADJUST)
    share = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    p = torch.softmax(-1.3 * share.log(), dim=0)  # equal logits: the adjustment alone decides
    expected = p - torch.eye(10, dtype=torch.float64)[label]
    gradient = model.gradients[0][0].double()
    torch.testing.assert_close(gradient / gradient.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_half_precision_rounds_neither_the_last_layer_nor_the_adjustment():
    model, x = network(), images(8).float() / 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(x)
    expected = model.classifier(features.float()) + ADJUST.offset()
    assert StepNetwork(adjusted(model, ADJUST), "bf16")(x).equal(expected)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


@pytest.mark.parametrize("build", [network, Foreign])
def test_in_half_precision_the_adjusted_copy_answers_and_is_attacked_and_adds_in_fp32(build):
    model, x = build(), images(8).float() / 255
    work = StepNetwork(adjusted(model, ADJUST), "bf16").folded(x)
    assert isinstance(work, WorkingCopy) and len(work.folded.convs) == 3
    plain = StepNetwork(model, "bf16").folded(x)
    assert torch.equal(work(x), plain(x) + ADJUST.offset()) and (plain(x) != plain(x).bfloat16()).any()


def test_an_adjusted_evaluation_in_half_precision_warns_of_nothing_and_leaves_the_network_as_it_was(recwarn):
    model = network()
    before, head = list(model.state_dict()), model.classifier
    x = images(40).float() / 255
    work = StepNetwork(adjusted(model, ADJUST), "bf16").frozen(x)
    found = evaluate(model, split(), attacks=["clean", "pgd2"], adjust=ADJUST, precision="bf16")
    expected = work(x).argmax(1).numpy() == split().labels
    np.testing.assert_array_equal(found.outcomes["clean"].correct, expected)
    assert not recwarn.list and list(model.state_dict()) == before and model.classifier is head


def test_one_logit_does_not_become_as_many_as_there_are_counts():
    one = adjusted(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), ADJUST)
    with pytest.raises(RuntimeError, match="expanded size"):
        one(torch.rand(2, 1, 8, 8))


def test_tau_zero_is_no_adjustment():
    none, zero = (evaluate(network(), split(), attacks="pgd2", adjust=a) for a in (None, Adjustment(0, COUNTS)))
    assert none.to_json() == zero.to_json() and "adjustment" not in none.to_json()


def test_the_report_says_so():
    found = evaluate(network(), split(), attacks="clean", adjust=ADJUST)
    assert found.to_json()["adjustment"] == {"tau": 1.3, "train_counts": COUNTS} and found.model == "SmallNet"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found.table())
    assert "logits less 1.3 log n/N" in console.export_text()


@pytest.mark.parametrize(
    ("tau", "counts", "message"),
    [(-1, COUNTS, "at least 0"), (float("nan"), COUNTS, "at least 0"), (1, [*COUNTS[:9], 0], "class 9")],
)
def test_an_adjustment_out_of_range_is_refused(tau: float, counts: list[int], message: str):
    with pytest.raises(LtatError, match=message):
        Adjustment(tau, counts)


def test_other_classes_are_refused():
    with pytest.raises(LtatError, match="one per class"):
        evaluate(network(), split(), attacks="clean", adjust=Adjustment(1, [5, 4]))


def test_a_network_that_adjusts_itself_is_refused():
    model = network()
    put_head(model, "cosine")
    evaluate(model, split(), attacks="clean", adjust=ADJUST)
    assert isinstance(model.classifier, CosineClassifier)
    model.classifier.offset += torch.arange(10)
    with pytest.raises(LtatError, match=r"robal\.tau_p"):
        evaluate(model, split(), attacks="clean", adjust=ADJUST)


def saved(folder: Path, **extra: object) -> Path:
    save_model(network(), folder / "best", extra={"dataset": "digits", **extra})
    return folder / "best"


def command(checkpoint: Path, *arguments: object):
    fixed = ["eval", str(checkpoint), "--attacks", "clean", "--device", "cpu", "--n-examples", "100"]
    return CliRunner().invoke(main, [*fixed, *map(str, arguments)])


def figures(checkpoint: Path, *arguments: object) -> dict:
    file = checkpoint.parent / "r.json"
    done = command(checkpoint, "--json", file, *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text())


def test_the_command_takes_the_counts_of_the_card_whatever_the_groups_are(tmp_path: Path):
    model = saved(tmp_path, train_counts=COUNTS)
    assert figures(model, "--adjust", 1)["adjustment"] == {"tau": 1.0, "train_counts": COUNTS}
    assert figures(model, "--adjust", 1, "--imbalance-ratio", 5)["adjustment"]["train_counts"] == COUNTS
    assert "adjustment" not in figures(model)


def test_the_command_evaluates_what_the_run_deployed(tmp_path: Path):
    model = saved(tmp_path, train_counts=COUNTS, eval_tau=0.5, corrects_prior=True)
    found = figures(model)
    assert found["adjustment"]["tau"] == 0.5 and CORRECTED_TWICE in found["flags"]
    assert "adjustment" not in figures(model, "--adjust", 0) and figures(model, "--adjust", 0)["flags"] == []


def test_a_card_without_counts_needs_the_ratio_it_was_trained_at(tmp_path: Path):
    model = saved(tmp_path)
    done = command(model, "--adjust", 1)
    assert done.exit_code == 2 and "add --imbalance-ratio" in done.output and done.output.count("\n") == 1
    counts = figures(model, "--adjust", 1, "--imbalance-ratio", 20)["adjustment"]["train_counts"]
    assert counts[0] > 10 * counts[9] > 0


@pytest.mark.parametrize("tau", ["-1", "nan", "inf", "much"])
def test_a_tau_that_is_none_is_refused(tau: str, tmp_path: Path):
    done = command(saved(tmp_path, train_counts=COUNTS), "--adjust", tau)
    assert done.exit_code == 2, done.output
