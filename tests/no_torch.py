"""A pytest plugin under which torch cannot be imported: `pytest -p tests.no_torch tests/spec tests/sched`."""

from __future__ import annotations

import sys

sys.modules.update(dict.fromkeys(("torch", "transformers")))
