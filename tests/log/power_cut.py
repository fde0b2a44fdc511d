"""Cut the power under a log that is appended to: run inside `unshare -m` as root.

`python power_cut.py FOLDER MODE OPEN LINES` makes an ext4 file system in a file, lets a
`log_worker` append there, and after so many lines of acknowledgements stops the file system as a
power cut does: MODE 2 throws away what its journal has not yet written, MODE 1 writes the journal
but no data. Then it mounts again and checks that what was acknowledged is there.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

from headrace.log import segment, writer
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.clock import SystemClock
from headrace.testing.log_crashes import check_numbered, note_acknowledged
from headrace.testing.log_worker import open_embedded

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`."""
SIZE_BYTES = 64 << 20


class Place:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> EmbeddedLog:
        return EmbeddedLog(self.directory, SystemClock())

    def reader(self) -> EmbeddedLogReader:
        return EmbeddedLogReader(self.directory)


def open_unsynced(directory: str) -> EmbeddedLog:
    """Open a log that forgets to sync its commits."""
    opened = segment.open_writing

    def open_writing(path: Path):
        connection = opened(path)
        connection.pragma("synchronous", "OFF")
        return connection

    writer.segments.open_writing = open_writing
    return open_embedded(directory)


def mounted(image: Path, at: Path) -> None:
    # A long commit interval: nothing becomes durable by chance while the writer runs.
    subprocess.run(["mount", "-o", "loop,commit=300", str(image), str(at)], check=True)


def cut(at: Path, mode: int) -> None:
    descriptor = os.open(at, os.O_RDONLY)
    fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", mode))
    os.close(descriptor)


def work_and_cut(at: Path, mode: int, opener: str, lines: int) -> dict[str, int]:
    """Return what was acknowledged when the power went."""
    acknowledged: dict[str, int] = {}
    command = [sys.executable, "-m", "headrace.testing.log_worker", f"power_cut:{opener}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [*command, str(at / "log"), "100000"], env=environment, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        for _ in range(lines):
            note_acknowledged(worker.stdout.readline(), acknowledged)
        cut(at, mode)
        worker.kill()
    return acknowledged


def main(folder: Path, mode: int, opener: str, lines: int) -> None:
    image, at = folder / "disk", folder / "mount"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted(image, at)
    acknowledged = work_and_cut(at, mode, opener, lines)
    subprocess.run(["umount", str(at)], check=True)
    mounted(image, at)
    try:
        check_numbered(Place(at / "log"), acknowledged)
        sys.stdout.write("all there")
    finally:
        subprocess.run(["umount", str(at)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
