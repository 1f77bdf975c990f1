"""The conformance kit: what every backend, source and executor must do, as tests to subclass.

In the tests of a plugin (the kit needs pytest, and nothing else that batchkit does not)::

    from batchkit.testing import BackendConformance


    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend()

pytest then runs every check as a test of its own. :func:`check_resume` takes a pipeline and
restores at every step.
"""

from __future__ import annotations

import pytest

# Before the imports: only then does a failing assert show its values.
pytest.register_assert_rewrite(
    "batchkit.testing.backend", "batchkit.testing.executor", "batchkit.testing.samples", "batchkit.testing.source"
)

from batchkit.testing.backend import BackendConformance  # noqa: E402
from batchkit.testing.executor import ExecutorConformance  # noqa: E402
from batchkit.testing.resume import check_resume  # noqa: E402
from batchkit.testing.source import SourceConformance  # noqa: E402

__all__ = ["BackendConformance", "ExecutorConformance", "SourceConformance", "check_resume"]
