"""The CIFAR-like epoch: 50,000 pictures padded by 4 and cropped, flipped and normalised, by batchkit and its peers.

``workload`` has the data and batchkit's pipeline, ``proof`` makes sure that a contender does the whole work,
and each other module has one peer; it imports that peer's package, so it is imported only where that is there.
"""

from __future__ import annotations
