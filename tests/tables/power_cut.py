"""Cut the power under a writer: run inside `unshare -m` as root; prints what was found as JSON.

`python power_cut.py FOLDER MODE EPOCHS [UNSYNCED]` makes an ext4 file system in a file, lets
`table_writer.py` commit to it, and stops the file system as a power cut does: MODE 2 throws away
what the journal has not yet written, MODE 1 writes the journal but no data. Then it mounts again
and looks.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

from table_writer import verify

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`."""
HERE = Path(__file__).parent
SIZE_BYTES = 64 << 20


def mounted(image: Path, at: Path) -> None:
    # A long commit interval: nothing becomes durable by chance while the writer runs.
    subprocess.run(["mount", "-o", "loop,commit=300", str(image), str(at)], check=True)


def cut(at: Path, mode: int) -> None:
    descriptor = os.open(at, os.O_RDONLY)
    fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", mode))
    os.close(descriptor)


def main(folder: Path, mode: int, epochs: int, unsynced: list[str]) -> None:
    image, at = folder / "disk", folder / "mount"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted(image, at)
    writer = [
        sys.executable,
        str(HERE / "table_writer.py"),
        str(at / "data"),
        str(epochs),
        *unsynced,
    ]
    said = subprocess.run(writer, check=True, capture_output=True, text=True).stdout
    cut(at, mode)
    subprocess.run(["umount", str(at)], check=True)
    mounted(image, at)
    try:
        found, wrong = verify(at / "data"), ""
    except Exception as e:  # noqa: BLE001 - any failure is a finding
        found, wrong = -1, repr(e)
    subprocess.run(["umount", str(at)], check=True)
    acknowledged = int(said.split()[-1])
    sys.stdout.write(json.dumps({"acknowledged": acknowledged, "found": found, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
