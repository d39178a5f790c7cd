"""The interface of a training method: the loss of one step, and the loss per image that its attack ascends.

The trainer calls these hooks in this order, for every method::

    model = method.prepare_model(model)                # when the network is built
    method.take_average(average)                       # where average.kind keeps an average of the weights
    method.initialise(model)                           # before the first epoch
    method.begin_epoch(epoch)                          # every epoch
        step.x_adv = method.attack(step)               # every step: PGD on method.objective(step)
        terms = method.loss(step)                      # with awp.gamma twice, the second time at other weights
        terms.loss.backward()
        optimizer.step()
        method.end_step(step, terms)
    method.end_epoch(epoch)

``loss`` must not change the method, because a step may call it more than once. Examples: MART and TRADES run more
forwards in ``loss``; the distillation methods compare with ``teacher``; RoBal replaces the classifier in
``prepare_model``; REAT counts its predictions per class in ``end_step``, weights its ``objective`` by the counts of the
previous epoch and saves them in ``state_dict``; DAFA does the same with probabilities, and scales the radius of each
class in ``attack``; TAET's first stage returns clean images from ``attack``. The options of every method (AWP, the
class-wise radius, the mode of the attack) need no code in a method.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from ltat.attacks import Objective, ThreatModel
from ltat.config import RunConfig
from ltat.config.resolving import require_complete
from ltat.methods.attacking import check_attack, training_attack
from ltat.methods.awp import check_awp
from ltat.methods.objectives import inner_objective
from ltat.methods.step import LossTerms, Step
from ltat.models import Classifier


class Method:
    """Base of every training method. A subclass names its settings, ``Config``, and implements :meth:`loss`.

    Args:
        config: the run's complete settings, an instance of the class's ``Config``.
        class_counts: images of each class in the first epoch, [C], on the training device.
        teacher: a network with the same classes, for distillation methods.

    Raises:
        LtatError: the settings do not fit together, or a teacher is missing.
    """

    Config: ClassVar[type[RunConfig]]
    tau = 1.0  # attack.loss=bsl adds the prior tau * log n_c
    corrects_prior = False  # whether the loss corrects for the class frequencies, so that an adjustment would repeat it

    def __init__(self, config: RunConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        require_complete(config)
        self.config = config
        self.teacher = teacher
        self.threat = ThreatModel(norm=config.attack.norm, eps=config.attack.eps)
        check_attack(config, teacher)
        check_awp(config)

    def loss(self, step: Step) -> LossTerms:
        """The loss to minimise on ``step.x_adv``, the network in training mode."""
        raise NotImplementedError

    def objective(self, step: Step) -> Objective:
        """The loss per image that the attack ascends (``attack.loss``); the network is in the mode of the attack."""
        return inner_objective(self.config.attack.loss, step.model, step.batch, self.tau * step.log_prior, self.teacher)

    def attack(self, step: Step) -> Tensor:
        """Adversarial images [B, ch, H, W] in [0, 1] for ``step.batch``, without gradient."""
        return training_attack(step, self.config, self.objective, self.threat)

    def prepare_model(self, model: Classifier) -> Classifier:
        """Change the network when it is built (another classifier); new weights are drawn by the run's seed."""
        return model

    def initialise(self, model: Classifier) -> None:
        """Set the initial weights of a run, after the teacher stage (a warm start)."""

    def take_average(self, average: Classifier) -> None:
        """Receive the network whose weights are the average of the run's, in place, after every update of it.

        It is frozen and in evaluation mode, and is called for where ``average.kind`` keeps one.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch's first batch."""

    def end_step(self, step: Step, terms: LossTerms) -> None:
        """Called after the optimiser's step, with the updated network in training mode and the terms of the loss."""

    def end_epoch(self, epoch: int) -> None:
        """Called after an epoch's last batch."""

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs between any two steps, as tensors, numbers and strings only.

        It must have all that the hooks change and later steps use, also what is counted within an epoch. A run that is
        resumed in the middle of an epoch calls ``load_state_dict``, ``begin_epoch`` and ``load_state_dict`` again. If
        that does not bring an attribute back, the run says so and writes states after epochs only.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    def remarks(self, images: Tensor) -> tuple[str, ...]:
        """Lines about the method that a run on such images [n, ch, H, W] prints when training begins."""
        return ()

    @classmethod
    def teacher_config(cls, config: RunConfig) -> RunConfig | None:
        """The settings of the teacher stage that runs first, or ``None`` for a method without a teacher stage."""
        return None
