"""Lets tests import the oracle."""

import sys
from pathlib import Path

# tests/oracle.py is imported by name, also where the tests are run from elsewhere.
sys.path.insert(0, str(Path(__file__).parent))
