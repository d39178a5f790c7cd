"""The score of an epoch, by which the best checkpoint is chosen."""

from ltat.data import Split
from ltat.evaluation import Adjustment, Evaluation, evaluate
from ltat.training.epoch_metrics import Row
from ltat.training.run_data import RunData
from ltat.training.stage import Stage


def validate(stage: Stage, data: RunData, epoch: int) -> Row:
    """The score by which the best checkpoint is chosen, in percent; nothing in epochs that do not compete.

    It is the balanced robust accuracy (the mean over classes), because held-out images are imbalanced as the training
    set is, and a test set may be; on the balanced test set of most papers it is the overall one.
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
    """What ``eval.tau`` takes off the logits of the deployed network, by the counts of the training set."""
    tau = stage.config.eval.tau
    return Adjustment(tau, data.dataset.train.counts.tolist()) if tau else None


def corrects_prior(stage: Stage) -> bool:
    """Whether training makes up for the class frequencies, by its loss or by what it samples."""
    return stage.method.corrects_prior or stage.config.data.sampling != "natural"


def evaluate_stage(
    stage: Stage, split: Split, attacks: tuple[str, ...], adjust: Adjustment | None = None
) -> Evaluation:
    """Evaluate a stage's network as it is deployed, under the threat model of its training."""
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
    )
