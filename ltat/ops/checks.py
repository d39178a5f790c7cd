"""What is checked of every tensor that comes from outside."""

from torch import Tensor

from ltat.errors import LtatError


def require_tensors(**values: object) -> None:
    """Refuses NumPy arrays and anything else that is no tensor, by the name of the argument.

    Raises:
        LtatError: naming the first argument that is no tensor.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kind = "numpy array" if type(value).__module__ == "numpy" else f"value of type {type(value).__name__}"
            raise LtatError(f"{name} is a {kind}; give a torch tensor")
