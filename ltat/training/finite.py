"""Whether the tensors of a training are finite."""

from torch import Tensor

LIMIT = 1e18  # of weights, momentum and statistics: their squares still fit into fp32


def non_finite_tensor(tree: object, name: str = "") -> str | None:
    """The dotted name of the first floating tensor in nested containers with NaN, infinity or a value above LIMIT."""
    if isinstance(tree, Tensor):
        tame = not tree.is_floating_point() or bool((tree.isfinite() & (tree.abs() <= LIMIT)).all())
        return None if tame else name
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (non_finite_tensor(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((where for where in found if where), None)
