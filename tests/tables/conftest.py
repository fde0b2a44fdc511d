from __future__ import annotations

import sys
from pathlib import Path

# The writer is run as a process by some tests, and its parts are used by others.
sys.path.insert(0, str(Path(__file__).parent))
