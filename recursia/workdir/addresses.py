"""How orbax addresses a bucket: by itself it knows gs:// alone, and sets no limit to its tries."""

import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from recursia import buckets, storage


def teach() -> None:
    """Has orbax address gs:// and s3:// as `storage.kvstore` does.

    Orbax 0.12.8 has no option for it. What is replaced are the three functions by which it tells a
    bucket from a folder; a place that neither knows is a path on disk, as before.
    """
    replaced: dict[str, Any] = {"_use_gcs_driver": buckets.is_place, "_normalize_path": _normal}
    for name, function in replaced.items():
        setattr(tensorstore_utils, name, function)
    gcs_utils.get_kvstore_for_gcs = storage.kvstore


def _normal(path: str) -> str:
    if not buckets.is_place(path):
        return os.path.normpath(path)
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{os.path.normpath(rest)}"
