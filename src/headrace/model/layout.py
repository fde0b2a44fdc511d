"""Where things lie in a data directory: paths only, nothing is touched."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_BYTES_MAX = 100
"""A Unix socket's path may have 104 bytes on macOS, 108 on Linux, the closing zero included."""


@dataclass(frozen=True)
class Layout:
    """The paths of one data directory; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, root: str | Path) -> Layout:
        """Return the layout of a directory, made absolute."""
        return cls(Path(root).expanduser().resolve())

    @property
    def deployment(self) -> Path:
        """Which log, storage and runner the directory belongs to; JSON."""
        return self.root / "deployment.json"

    @property
    def near(self) -> Path:
        """Copies of files of tables that are far away, for queries: made again if they are gone."""
        return self.run / "near"

    @property
    def log(self) -> Path:
        """Segments of the embedded log."""
        return self.root / "log"

    @property
    def indexes(self) -> Path:
        """Folder of what `pull` has seen of each source that sweeps."""
        return self.root / "sources"

    def index(self, source: str) -> Path:
        """What `pull` has seen of a source that sweeps; made anew if it is lost."""
        return self.indexes / f"{source}.db"

    @property
    def run(self) -> Path:
        """Locks, plan, status and metrics of what runs now: nothing that a restart needs."""
        return self.root / "run"

    @property
    def keys(self) -> Path:
        """Indexes of what each key of the keyed tables holds: made again if they are gone."""
        return self.run / "keys"

    @property
    def plan(self) -> Path:
        """The compiled plan that the roles run, JSON."""
        return self.run / "plan.json"

    @property
    def lock(self) -> Path:
        """File that whoever runs this directory holds locked."""
        return self.run / "headrace.lock"

    @property
    def door(self) -> Path:
        """Socket at which the collector takes appends of other roles."""
        return self._socket("door.sock")

    @property
    def serve(self) -> Path:
        """Socket at which the serve role answers HTTP."""
        return self._socket("serve.sock")

    def _socket(self, name: str) -> Path:
        path = self.run / name
        if len(str(path).encode()) <= SOCKET_PATH_BYTES_MAX:
            return path
        digest = hashlib.blake2b(str(self.root).encode(), digest_size=8).hexdigest()
        short = Path(tempfile.gettempdir()) / f"headrace-{digest}-{name}"
        if len(str(short).encode()) <= SOCKET_PATH_BYTES_MAX:
            return short
        # TMPDIR itself may be long.
        return Path("/tmp") / short.name  # noqa: S108 - the name is of this directory alone
