"""The typed settings of a run (:mod:`sections`), and where they come from (:mod:`recipes`, :mod:`loading`).

:mod:`ltat.config.resolving` makes the settings that were asked for complete.
"""

from ltat.config.asked import Asked
from ltat.config.decided import Decided, left_out
from ltat.config.loading import load_config
from ltat.config.recipes import list_recipes
from ltat.config.sections import (
    AttackSection,
    AugmentSection,
    AverageSection,
    AwpSection,
    BalancedSection,
    BslSection,
    DataSection,
    EvalSection,
    LossSection,
    ModelSection,
    OptimSection,
    RadiusSection,
    RunConfig,
    ScheduleSection,
    Section,
    SeedSection,
    SelectSection,
    TrainSection,
    named_epoch,
)
from ltat.config.toml import from_toml, to_toml

__all__ = [
    "Asked",
    "AttackSection",
    "AugmentSection",
    "AverageSection",
    "AwpSection",
    "BalancedSection",
    "BslSection",
    "DataSection",
    "Decided",
    "EvalSection",
    "LossSection",
    "ModelSection",
    "OptimSection",
    "RadiusSection",
    "RunConfig",
    "ScheduleSection",
    "Section",
    "SeedSection",
    "SelectSection",
    "TrainSection",
    "from_toml",
    "left_out",
    "list_recipes",
    "load_config",
    "named_epoch",
    "to_toml",
]
