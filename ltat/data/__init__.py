"""Datasets, their long-tailed and balanced subsets, and the batches made of them."""

from ltat.data.augment import Augment
from ltat.data.balanced import balanced_indices, balanced_sizes
from ltat.data.datasets import DATASETS, DatasetSpec, find_spec, load_dataset
from ltat.data.holdout import holdout_indices, stratified_subset
from ltat.data.images import ImageStore
from ltat.data.loaders import Batch, FfcvLoader, Loader, ResidentLoader, TorchLoader, make_loader
from ltat.data.longtail import longtail_counts, longtail_indices
from ltat.data.plans import (
    BalancedPlan,
    ClassSamplingPlan,
    FixedPlan,
    IndexPlan,
    ProgressivePlan,
    ShufflePlan,
    plan_from_file,
)
from ltat.data.split import Dataset, Split, index_hash

__all__ = [
    "DATASETS",
    "Augment",
    "BalancedPlan",
    "Batch",
    "ClassSamplingPlan",
    "Dataset",
    "DatasetSpec",
    "FfcvLoader",
    "FixedPlan",
    "ImageStore",
    "IndexPlan",
    "Loader",
    "ProgressivePlan",
    "ResidentLoader",
    "ShufflePlan",
    "Split",
    "TorchLoader",
    "balanced_indices",
    "balanced_sizes",
    "find_spec",
    "holdout_indices",
    "index_hash",
    "load_dataset",
    "longtail_counts",
    "longtail_indices",
    "make_loader",
    "plan_from_file",
    "stratified_subset",
]
