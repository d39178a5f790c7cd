"""The typed settings of a run: what they are (:mod:`sections`) and where they come from (:mod:`loading`)."""

from ltat.config.loading import from_toml, list_recipes, load_config, to_toml
from ltat.config.sections import (
    AttackSection,
    AugmentSection,
    AwpSection,
    BalancedSection,
    BslSection,
    DataSection,
    EvalSection,
    ModelSection,
    OptimSection,
    RadiusSection,
    RunConfig,
    ScheduleSection,
    Section,
    SeedSection,
    SelectSection,
    TrainSection,
)

__all__ = [
    "AttackSection",
    "AugmentSection",
    "AwpSection",
    "BalancedSection",
    "BslSection",
    "DataSection",
    "EvalSection",
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
    "list_recipes",
    "load_config",
    "to_toml",
]
