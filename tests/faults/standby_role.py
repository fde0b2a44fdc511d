"""The process role with a short lease, so that a test need not wait long for a take-over.

`python standby_role.py process --data DATA`, as `headrace.app.role` takes it.
"""

from __future__ import annotations

import functools
import sys

from headrace.app import role
from headrace.process import run
from headrace.process.standing import Standing

LENGTH_S = 2.0

if __name__ == "__main__":
    run.Standing = functools.partial(Standing, length_s=LENGTH_S)
    sys.exit(role.main())
