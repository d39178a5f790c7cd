"""The record of the images and classes of a run, with hashes that a resumed run compares."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ltat.config import RunConfig
from ltat.data import Dataset, index_hash
from ltat.training.batches import balanced_plan, build_plan
from ltat.training.run_data import RunData


def index_record(data: RunData, config: RunConfig, given: Mapping[str, str | None]) -> dict[str, Any]:
    """The images of each part of the data, as positions in the source set, each list with its hash.

    ``given`` has the checksums of the weights that the run does not train (a teacher, the weights it starts from); they
    are part of the record.
    """
    lists = {"subset": data.dataset.train.indices, "train": data.train.indices}
    if data.dataset.test_imbalance_ratio is not None:
        lists["test"] = data.dataset.test.indices
    if data.val is not None:
        lists["val"] = data.val.indices
    lists["balanced"] = data.train.indices[balanced_plan(data.train, config).first_draw]
    if config.data.sampling == "file":
        lists["plan"] = data.train.indices[build_plan(data.train, config).epoch(1)]
    return (
        {"classes": class_record(data.dataset)}
        | {name: {"sha256": sha256} for name, sha256 in given.items() if sha256 is not None}
        | {
            name: {"n": len(indices), "sha256": index_hash(indices), "indices": indices.tolist()}
            for name, indices in lists.items()
        }
    )


def class_record(dataset: Dataset) -> dict[str, Any]:
    """The class names, and a hash of them and of the label of each training image.

    With positions alone, a folder whose classes were renamed would look like the original one.
    """
    names = json.dumps(list(dataset.class_names)).encode()
    digest = hashlib.sha256(names + np.ascontiguousarray(dataset.train.labels, dtype="<i8").tobytes())
    return {"names": list(dataset.class_names), "sha256": digest.hexdigest()}
