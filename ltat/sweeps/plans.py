"""A run of a sweep, described so that another process or machine can carry it out."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ltat.config import Asked, RunConfig
from ltat.config.loading import validated
from ltat.config.sections import Tree
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.training.run_folder import settings_tree


@dataclass(frozen=True)
class RunPlan:
    """A run of a sweep.

    Attributes:
        name: unique in the sweep, for tables and logs.
        folder: the run folder.
        settings: what was asked for, as a tree that holds all of it.
        row: the row of the table of results, shared by the seeds of one setting.
        teacher: the plan of the teacher stage that is trained first, shared with other runs; ``None`` without.
        only_teacher: whether this is such a teacher stage.
    """

    name: str
    folder: Path
    settings: Tree
    row: str = ""
    teacher: "RunPlan | None" = None
    only_teacher: bool = False

    def asked(self) -> Asked[RunConfig]:
        """The settings, for :func:`ltat.training.train`."""
        return Asked(validated(find_method(self.settings["method"]).Config, self.settings))

    def to_json(self) -> str:
        """The plan as one line; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> "RunPlan":
        """The plan that :meth:`to_json` wrote."""
        return _plan(json.loads(text))


def _plan(tree: Tree) -> RunPlan:
    teacher = tree["teacher"] and _plan(tree["teacher"])
    return RunPlan(**{**tree, "folder": Path(tree["folder"]), "teacher": teacher})


def plan_run(name: str, folder: Path, asked: Asked[RunConfig], row: str = "") -> RunPlan:
    """The plan of a run by settings from :func:`ltat.config.load_config`; ``row`` is ``name`` if left out."""
    return RunPlan(name, folder.absolute(), settings_tree(asked.config), row or name)


def require_distinct(plans: Iterable[RunPlan]) -> None:
    """Check that no two runs share a name or a folder.

    Raises:
        LtatError: two do.
    """
    seen: dict[object, RunPlan] = {}
    for plan in plans:
        for key in (plan.name, plan.folder):
            other = seen.setdefault(key, plan)
            if other is not plan:
                raise LtatError(
                    f"two runs of the sweep are called {other.name} in {plan.folder}; leave one of them out"
                )
