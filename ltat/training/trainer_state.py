"""The state of a trainer between two steps, from which training goes on as if it had never stopped.

Random draws are keyed by epoch and step and need no state.
"""

from ltat.training.optimizer import load_optimizer_state
from ltat.training.state_file import State
from ltat.training.trainer import Trainer


def state_of(trainer: Trainer) -> State:
    """The state now: the complete epochs, the sums over the steps since then, and all that training has changed."""
    return {
        "stage": trainer.stage.name,
        "epoch": trainer.epoch,
        "running": trainer.metrics.state_dict(),
        "model": trainer.stage.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "method": trainer.stage.method.state_dict(),
        "average": trainer.average.state_dict(),
    }


def load_state(trainer: Trainer, state: State) -> None:
    """Go on from a state. One of an older version has no ``running`` and was taken after a complete epoch.

    Raises:
        ValueError: the epoch that was running does not have so many steps.
    """
    trainer.stage.model.load_state_dict(state["model"])
    load_optimizer_state(trainer.optimizer, state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.stage.method.load_state_dict(state["method"])
    trainer.average.load_state_dict(state.get("average", {}))
    trainer.epoch, trainer.metrics = int(state["epoch"]), trainer.new_metrics()
    if state.get("running", {}).get("steps"):
        _go_on_within_epoch(trainer, state)


def _go_on_within_epoch(trainer: Trainer, state: State) -> None:
    stage, epoch, steps = trainer.stage, trainer.epoch + 1, state["running"]["steps"]
    if epoch > stage.config.train.epochs or steps >= stage.loader.steps(epoch):
        raise ValueError(f"it is of step {steps} of epoch {epoch}")
    trainer.metrics.load_state_dict(state["running"])
    stage.method.begin_epoch(epoch)
    stage.method.load_state_dict(state["method"])  # again: begin_epoch resets what the steps have counted
