"""Errors that a CUDA kernel could have. Each has to be caught by the emulation, or the emulation proves nothing."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlantedError:
    """``old`` stands once in ``file`` of csrc/kernels, up to white space, and ``new`` takes its place.

    ``kernel`` is the .cu file that shows the error.
    """

    name: str
    kernel: str
    file: str
    old: str
    new: str

    def apply(self, kernels: Path) -> None:
        """Writes the error into a copy of csrc/kernels."""
        path = kernels / self.file
        pattern = re.compile(r"\s+".join(re.escape(word) for word in self.old.split()))
        text, count = pattern.subn(lambda _: self.new, path.read_text())
        assert count == 1, (
            f"{self.file} holds the text of the planted error '{self.name}' {count} times instead of once, "
            "so write the error anew for the kernel as it is now"
        )
        path.write_text(text)


PGD, KD, GATHER, SHARED = "pgd_step_cuda.cu", "balanced_kd_cuda.cu", "gather_augment_cuda.cu", "cuda_common.h"
ARRIVALS = "arrivals.h"
RELU, AFFINE, CHANNELS = "relu_grad_add_cuda.cu", "affine_relu_cuda.cu", "channels_cuda.h"

PLANTED_ERRORS = (
    PlantedError(
        "sum over a block: no barrier before its memory is written again",
        PGD,
        SHARED,
        "__syncthreads(); partial[threadIdx.x] = value;",
        "partial[threadIdx.x] = value;",
    ),
    PlantedError(
        "sum over a block: no barrier before the values are added",
        PGD,
        SHARED,
        "partial[threadIdx.x] = value; __syncthreads();",
        "partial[threadIdx.x] = value;",
    ),
    PlantedError(
        "sum over a block: no barrier between two rounds",
        PGD,
        SHARED,
        "partial[threadIdx.x + width]; __syncthreads();",
        "partial[threadIdx.x + width];",
    ),
    PlantedError(
        "sum over a block: a round reaches beyond the memory",
        PGD,
        SHARED,
        "if (threadIdx.x < width) partial",
        "if (threadIdx.x <= width) partial",
    ),
    PlantedError(
        "sum over a block: the memory is too small",
        PGD,
        SHARED,
        "__shared__ double partial[kThreads];",
        "__shared__ double partial[kThreads - 1];",
    ),
    PlantedError(
        "combination of warps: the memory is too small",
        KD,
        KD,
        "__shared__ char memory[kLanes / 32 * sizeof(T)]",
        "__shared__ char memory[(kLanes / 32 - 1) * sizeof(T)]",
    ),
    PlantedError(
        "combination of warps: no barrier before its memory is written again",
        KD,
        KD,
        "__syncthreads(); if (threadIdx.x % 32 == 0) warps",
        "if (threadIdx.x % 32 == 0) warps",
    ),
    PlantedError(
        "combination of warps: no barrier before they are read",
        KD,
        KD,
        "warps[threadIdx.x / 32] = value; __syncthreads();",
        "warps[threadIdx.x / 32] = value;",
    ),
    PlantedError(
        "combination of lanes: the butterfly leaves out a round",
        KD,
        KD,
        "for (int mask = 16; mask > 0; mask /= 2) value = merged",
        "for (int mask = 8; mask > 0; mask /= 2) value = merged",
    ),
    PlantedError(
        "combination of lanes: half of the warp is not in the mask",
        KD,
        KD,
        "float shuffled(float value, int mask) { return __shfl_xor_sync(0xffffffffu,",
        "float shuffled(float value, int mask) { return __shfl_xor_sync(0x0000ffffu,",
    ),
    PlantedError(
        "a row: a lane without a class leaves early",
        KD,
        KD,
        "const int lane = threadIdx.x % kLanes;",
        "const int lane = threadIdx.x % kLanes; if (lane >= args.classes) return;",
    ),
    PlantedError(
        "a row: a target out of range is looked up",
        KD,
        KD,
        "target_in_range(args, target) ? logf",
        "true ? logf",
    ),
    PlantedError(
        "a row: the alignment of one tensor is not tested",
        KD,
        KD,
        "fits(args.student) &&",
        "",
    ),
    PlantedError(
        "a row: the classes behind the last vector are forgotten",
        KD,
        KD,
        "return args.classes % kWidth == 0 &&",
        "return",
    ),
    PlantedError(
        "the last block: it does not set the counter back",
        KD,
        ARRIVALS,
        "if (last && gridDim.x > 1) arrived[counter] = 0;",
        "",
    ),
    PlantedError(
        "the last block: it is the last but one",
        KD,
        ARRIVALS,
        "atomicAdd(arrived + counter, 1u) == gridDim.x - 1",
        "atomicAdd(arrived + counter, 1u) == gridDim.x - 2",
    ),
    PlantedError(
        "the last block: it counts itself before its threads have written",
        KD,
        ARRIVALS,
        "__threadfence(); __syncthreads(); if (threadIdx.x == 0)",
        "if (threadIdx.x == 0)",
    ),
    PlantedError(
        "an l-infinity step: the alignment of one tensor is not tested",
        PGD,
        PGD,
        "is_aligned<float, kCount>(args.x) &&",
        "",
    ),
    PlantedError(
        "an l-infinity step: the elements behind the last vector are forgotten",
        PGD,
        PGD,
        "return size % kCount == 0 &&",
        "return",
    ),
    PlantedError(
        "an l-infinity step: one element too many",
        PGD,
        PGD,
        "i < size; i += threads * kCount",
        "i <= size; i += threads * kCount",
    ),
    PlantedError(
        "an l2 step: the threads take strides of half a block",
        PGD,
        PGD,
        "i += kThreads * kCount",
        "i += kThreads / 2 * kCount",
    ),
    PlantedError(
        "an l2 step: images beyond the grid are left out",
        PGD,
        PGD,
        "for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) { const Piece<Grad> piece(args,",
        "if (const int64_t sample = blockIdx.y; sample < args.batch) { const Piece<Grad> piece(args,",
    ),
    PlantedError(
        "an l2 step: the last piece of a large image is left out of its sum",
        PGD,
        PGD,
        "threadIdx.x < gridDim.x ? piece_sums",
        "threadIdx.x + 1 < gridDim.x ? piece_sums",
    ),
    PlantedError(
        "an l-infinity step: each sample has the radius of the first",
        PGD,
        PGD,
        "linf_radius_of(args, sample), step",
        "linf_radius_of(args, 0), step",
    ),
    PlantedError(
        "a batch of images: the elements behind the last vector are forgotten",
        GATHER,
        GATHER,
        "size % kWide == 0 && is_aligned",
        "is_aligned",
    ),
    PlantedError(
        "a batch of images: an illegal image is read",
        GATHER,
        GATHER,
        "move.legal ? element(args, move, y, x, channel) : NAN",
        "element(args, move, y, x, channel)",
    ),
    PlantedError(
        "a batch of images: images beyond the grid are left out",
        GATHER,
        GATHER,
        "sample < args.batch; sample += gridDim.y",
        "sample < gridDim.y; sample += gridDim.y",
    ),
    PlantedError(
        "a gradient of a ReLU: the alignment of one tensor is not tested",
        RELU,
        RELU,
        "args.grad, args.other, args.outside}",
        "args.grad, args.other}",
    ),
    PlantedError(
        "values of channels: a vector crosses into the next row of channels",
        AFFINE,
        CHANNELS,
        "row % kElements == 0 &&",
        "",
    ),
    PlantedError(
        "values of channels: they are not those of the vector",
        AFFINE,
        CHANNELS,
        "values + first % count, 0",
        "values, 0",
    ),
)
