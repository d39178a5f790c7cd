"""The flags of an evaluation: warnings to check before quoting its figures, one sentence each."""

from ltat.data.split import Dataset, Split
from ltat.evaluation.attacks import AttackInputs, Outcome

SELECTED_ON_TEST = "the best checkpoint was selected on the test set, as the papers do: its figures are optimistic"
"""The flag of every evaluation of such a checkpoint."""


def attack_flags(outcomes: dict[str, Outcome], failed: dict[str, str]) -> list[str]:
    """The flags of each attack, and of attacks that contradict each other; ``failed`` maps attacks to reasons."""
    flags = [f"{attack}: broke off and has no figure ({reason})" for attack, reason in failed.items()]
    flags += [f"{attack}: {flag}" for attack, outcome in outcomes.items() for flag in outcome.flags]
    return flags + _contradictions(outcomes)


def clean_flags(inputs: AttackInputs) -> list[str]:
    """The flag of clean images whose logits are not finite."""
    undefined = int((~inputs.finite).sum())
    wrong = f"clean: {undefined} of {len(inputs.split)} images have logits that are not finite and count as wrong"
    return [wrong] if undefined else []


def _contradictions(outcomes: dict[str, Outcome]) -> list[str]:
    """Results that cannot both be right: more accurate under attack, or AutoAttack weaker than another."""
    share = {attack: float(outcome.correct.mean()) for attack, outcome in outcomes.items()}
    flags = [
        f"{attack}: accuracy {robust:.2%} under attack is above the clean {share['clean']:.2%}"
        for attack, robust in share.items()
        if "clean" in share and robust > share["clean"]
    ]
    strongest = share.get("autoattack")
    if strongest is None:
        return flags
    return flags + [
        f"autoattack: leaves {strongest:.2%}, more than {attack} with {robust:.2%}: its attacks were misled"
        for attack, robust in share.items()
        if robust < strongest
    ]


def long_tailed_test(data: Split | Dataset) -> list[str]:
    """The flag of a test set that is not balanced."""
    if not isinstance(data, Dataset) or data.test_imbalance_ratio is None:
        return []
    return [
        f"test set: a long-tailed subset of {len(data.test)} images, imbalance ratio {data.test_imbalance_ratio:g}; "
        "only balanced accuracy, the mean over classes, compares with that on a balanced test set"
    ]
