"""The settings of a comparison: one protocol, fitted to each of its methods."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltat.config import Asked, load_config
from ltat.config.loading import parse_assignment, set_by_path
from ltat.config.recipes import find_recipe, list_recipes
from ltat.config.renamed import has_setting, todays_name

if TYPE_CHECKING:
    from ltat.config import RunConfig

ANY = "unified/any"
"""The protocol of a data set that has none of its own."""
DECIDED = {"method": "--methods names the methods", "seed.train": "--seeds numbers the runs"}


@dataclass(frozen=True)
class Protocol:
    """What all runs of a comparison share.

    Attributes:
        recipe: name of the recipe.
        methods: names of the methods.
        settings: values by dotted name, on top of the recipe; ``train.epochs`` also scales the teacher.
        assignments: ``section.key=value`` texts, on top of these.
    """

    recipe: str
    methods: Sequence[str]
    settings: Mapping[str, Any]
    assignments: Sequence[str]

    def configs(self, method: str, seeds: int) -> "list[Asked[RunConfig]]":
        """The settings of a method's runs, with training seeds 0, 1, ….

        Raises:
            LtatError: there is no such recipe, or the settings do not suit the method.
        """
        from ltat.sweeps.lengths import scaled

        tree, texts, epochs = self.tree(method), self.texts(method), self.settings.get("train.epochs")
        scaling = {} if epochs is None else scaled(asked(method, tree, {}).config, epochs)
        return [asked(method, tree, {**scaling, **self.settings, "seed.train": n}, texts) for n in range(seeds)]

    def tree(self, method: str) -> dict[str, Any]:
        """The recipe for ``method``, with a self-teacher where it needs a teacher and the recipe names none."""
        from ltat.methods import find_method
        from ltat.methods.teachers import TaughtConfig

        sections = find_recipe(self.recipe)
        tree = {name: value for name, value in sections.items() if method not in self.without([name])}
        teacher = tree.get("teacher", {})
        if issubclass(find_method(method).Config, TaughtConfig) and not (
            "path" in teacher or teacher.get("train") == "ema"
        ):
            set_by_path(tree, "teacher.train", "balanced")  # no other teacher is there for all
        return tree

    def texts(self, method: str) -> list[str]:
        """The assignments for ``method``."""
        return [text for text in self.assignments if method not in self.without(named(*parse_assignment(text)))]

    def without(self, names: Iterable[str]) -> list[str]:
        """The methods that lack one of these settings; none if all do, because that is an error to report."""
        from ltat.methods import find_method

        names, kinds = list(names), {method: find_method(method).Config for method in self.methods}
        lacking = [
            method
            for method, kind in kinds.items()
            if not all(has_setting(kind, todays_name(name, kind)) for name in names)
        ]
        return [] if len(lacking) == len(kinds) else lacking

    def left_out(self) -> list[str]:
        """A line for each part of the recipe and each assignment that some methods run without."""
        from ltat.methods import method_label

        parts = {f"section {name} of {self.recipe}": [name] for name in find_recipe(self.recipe)}
        parts |= {f"--set {text}": list(named(*parse_assignment(text))) for text in self.assignments}
        without = {part: ", ".join(map(method_label, self.without(names))) for part, names in parts.items()}
        return [f"{part} is left out for {methods}, which lack it" for part, methods in without.items() if methods]


def protocol_name(recipe: str | None, dataset: str | None) -> str:
    """The recipe that is named, else unified/``dataset`` where there is one, else :data:`ANY`."""
    if recipe is not None:
        return recipe
    own = f"unified/{dataset or 'digits'}"
    return own if own in list_recipes() else ANY


def asked(
    method: str, tree: dict[str, Any], settings: Mapping[str, Any], assignments: Sequence[str] = ()
) -> "Asked[RunConfig]":
    """The settings of one run.

    Raises:
        LtatError: wrong settings, or such as the comparison decides itself.
    """
    from ltat.methods import find_method

    return load_config(
        lambda name: find_method(name).Config,
        recipe=tree,
        settings={**settings, "method": method},
        assignments=assignments,
        decided=DECIDED,
    )


def named(name: str, value: object) -> Iterator[str]:
    """The dotted names of the settings that an assignment sets: several where the value is a table."""
    if isinstance(value, dict) and value:
        for key, own in value.items():
            yield from named(f"{name}.{key}", own)
    else:
        yield name


def teacher_lengths(configs: "Iterable[RunConfig]") -> list[int]:
    """The epochs of the teachers that are trained, each length once."""
    from ltat.methods.teachers import teacher_settings

    teachers = [teacher_settings(config) for config in configs]
    return sorted({own.epochs for own in teachers if own is not None and own.path is None and own.train == "balanced"})
