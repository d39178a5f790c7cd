"""Whether tensors share memory, decided from addresses, sizes and strides; nothing is read."""

from torch import Tensor

Axis = tuple[int, int]  # size and stride


def shares_with_itself(tensor: Tensor) -> bool:
    """Whether elements of one tensor may share memory, as in an expanded or overlapping view."""
    reach = 0
    for size, stride in _axes(tensor):
        if stride <= reach:
            return tensor.numel() != 0
        reach += (size - 1) * stride
    return False


def overlaps_partly(written: Tensor, other: Tensor) -> bool:
    """Whether ``other`` shares memory with ``written`` otherwise than element by element, which is harmless.

    Where their strides differ, lying in one stretch of memory is enough. ``written`` shares nothing with itself.
    """
    offset = other.data_ptr() - written.data_ptr()
    if 0 in (written.numel(), other.numel()) or offset >= _span(written) or -offset >= _span(other):
        return False
    axes, size = _axes(written), written.element_size()
    if written.dtype != other.dtype or written.shape != other.shape or _extended(other) != _extended(written):
        return True
    return offset != 0 and (offset % size != 0 or _is_apart(axes, offset // size))


def _axes(tensor: Tensor) -> list[Axis]:
    """Size and stride of each dimension along which the tensor extends, the innermost first."""
    return sorted(_extended(tensor), key=lambda axis: axis[1])


def _extended(tensor: Tensor) -> list[Axis]:
    return [axis for axis in zip(tensor.shape, tensor.stride(), strict=True) if axis[0] != 1]


def _span(tensor: Tensor) -> int:
    """Bytes from the first to behind the last element."""
    return (1 + sum((size - 1) * stride for size, stride in _axes(tensor))) * tensor.element_size()


def _is_apart(axes: list[Axis], offset: int) -> bool:
    """Whether two indices lie this many elements apart."""
    if not axes:
        return offset == 0
    size, stride = axes[-1]
    # What lies inside reaches less than one stride, so only the multiples on either side come into question.
    below = offset // stride
    return any(abs(k) < size and _is_apart(axes[:-1], offset - k * stride) for k in (below, below + 1))
