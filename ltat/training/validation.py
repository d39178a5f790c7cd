"""The score of an epoch, by which the best checkpoint is chosen."""

from ltat.data import Split
from ltat.evaluation import Adjustment, Evaluation, evaluate
from ltat.training.epoch_metrics import Row
from ltat.training.run_data import RunData
from ltat.training.stage import Stage


def validate(stage: Stage, data: RunData, epoch: int) -> Row:
    """The score that chooses the best checkpoint, in percent; empty in epochs that are no candidates.

    The score is the balanced robust accuracy (the mean over classes), because the held-out images are as imbalanced as
    the training set, and a test set may be imbalanced too. On a balanced test set it equals the overall accuracy.
    """
    select = stage.config.select
    competes = epoch >= select.from_epoch and (epoch % select.every == 0 or epoch == stage.config.train.epochs)
    if select.set == "none" or not competes:
        return {}
    split = data.val if data.val is not None else data.dataset.test
    measured = evaluate_stage(stage, split, ("clean", select.metric), adjustment(stage, data)).to_json()
    return {
        "select": f"{select.set}_{select.metric}",
        "score": measured[select.metric]["balanced"],
        "val": {name: {k: measured[name][k] for k in ("overall", "balanced")} for name in ("clean", select.metric)},
    }


def adjustment(stage: Stage, data: RunData) -> Adjustment | None:
    """The logit adjustment of the deployed network by ``eval.tau`` and the counts of the training set, if any."""
    tau = stage.config.eval.tau
    return Adjustment(tau, data.dataset.train.counts.tolist()) if tau else None


def corrects_prior(stage: Stage) -> bool:
    """Whether training corrects for the class frequencies, by its loss or by its sampling."""
    return stage.method.corrects_prior or stage.config.data.sampling != "natural"


def evaluate_stage(
    stage: Stage, split: Split, attacks: tuple[str, ...], adjust: Adjustment | None = None
) -> Evaluation:
    """Evaluate a stage's deployed network under the threat model of its training."""
    return evaluate(
        stage.model,
        split,
        attacks=attacks,
        threat=stage.method.threat,
        adjust=adjust,
        batch_size=stage.config.eval.batch_size,
        seed=stage.config.seed.train,
        device=stage.device,
        precision=stage.config.train.precision,
        ranks=stage.ranks,
    )
