"""Keyed permutation; row-addressed random numbers.

Nothing here has a state that a run could lose: the row at a position is a pure function of
(length, key), and a random number of (key, epoch, row, draw, element). A key is a tuple such
as ``(seed, epoch, stage)``, never a sum, so (seed 0, epoch 1) is not (seed 1, epoch 0).

Only integer arithmetic and the operations that IEEE 754 rounds exactly (``+ - * /`` and the
square root) are used, so the numbers have the same bits on every machine, at every batch size,
and whether NumPy or Python computes them.

``permutation.py`` has the order of the rows. The random numbers are in three steps: ``words.py`` makes
64 random bits for every address, ``values.py`` makes numbers of a distribution from them, and
``draws.py`` is what a user's function sees. Each names the sources of its methods.
"""

from batchkit.random.draws import RowRandom, ScalarRandom
from batchkit.random.permutation import MATERIALISED, Permutation

__all__ = ["MATERIALISED", "Permutation", "RowRandom", "ScalarRandom"]
