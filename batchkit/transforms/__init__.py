"""Vectorised transforms: whole batches in, whole batches out, in NumPy.

They are plain functions for ``map`` and ``random_map`` behind ``batch``; keyword arguments are
given with the stage::

    pipe.batch(128).random_map(bk.transforms.random_crop, leaf="image", padding=4)

and from a config file ``random_map: {fn: "batchkit.transforms:random_crop", kwargs: {leaf: image, padding: 4}}``.

Each returns a new tree in which the leaf is a new array; what it was given stays as it is.
``leaf`` is a path such as ``"image"`` or ``"meta/image"``, and ``None`` where the batch is a bare
array. Random ones draw numbers that are addressed by row, so a row is changed in the same way in
a batch of any size; only ``mixup`` and ``cutmix`` look at other rows.

``leaves.py`` finds and replaces a leaf, ``pictures.py`` knows heights, widths and channels,
``blocks.py`` computes piece by piece in cache; the transforms are in ``values.py`` (what a pixel
is), ``places.py`` (where it is) and ``mixing.py`` (two rows into one).
"""

from batchkit.transforms.mixing import cutmix, mixup
from batchkit.transforms.places import pad_to, random_crop, random_erasing, random_flip
from batchkit.transforms.values import clip_and_scale, color_jitter, normalize, one_hot

__all__ = [
    "clip_and_scale",
    "color_jitter",
    "cutmix",
    "mixup",
    "normalize",
    "one_hot",
    "pad_to",
    "random_crop",
    "random_erasing",
    "random_flip",
]

# Exported pipelines and the fingerprints of states hold a function's module: the public one, so
# that they do not depend on the file that a transform happens to be in.
for _transform in (
    clip_and_scale,
    color_jitter,
    cutmix,
    mixup,
    normalize,
    one_hot,
    pad_to,
    random_crop,
    random_erasing,
    random_flip,
):
    _transform.__module__ = __name__
