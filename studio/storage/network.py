"""Folders on other machines, where SQLite's write-ahead log cannot work: its shared memory is one machine's own.

See https://www.sqlite.org/wal.html: "All processes using a database must be on the same host computer; WAL does not work
over a network filesystem."
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from studio.pipelines.errors import OutputError

NETWORK_TYPES = frozenset(
    {
        "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "curvefs", "davfs", "drvfs", "fuse.ceph", "fuse.davfs2",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.juicefs", "gfs2", "glusterfs",
        "gpfs", "lustre", "macfuse", "ncpfs", "nfs", "nfs3", "nfs4", "ocfs2", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "webdav",
        "wekafs",
    }
)  # fmt: skip
"""Types of file systems, as the system's table of mounts names them."""


class Mount(NamedTuple):
    """A line of the table of mounts."""

    mountpoint: str
    fstype: str


def refuse_network_folder(folder: Path, mounts: Iterable[Mount] | None = None) -> None:
    """`OutputError` if `folder` lies on another machine.

    Args:
        mounts: by default this system's.
    """
    kind = file_system_of(folder, mounts)
    if kind.lower() in NETWORK_TYPES:
        raise OutputError(
            f"{folder} is on a network folder ({kind}), where the database of jobs would be damaged. Set STUDIO_HOME to a folder "
            "on a disk of this machine; pictures and adapters may lie anywhere."
        )


def file_system_of(folder: Path, mounts: Iterable[Mount] | None = None) -> str:
    """The type of the file system that `folder` is on; "" where that is not known."""
    table = _system_mounts() if mounts is None else mounts
    real = folder.resolve()
    found = [mount for mount in table if real.is_relative_to(mount.mountpoint)]
    # Of two mounts at one place the later one is seen.
    return max(enumerate(found), key=lambda each: (len(each[1].mountpoint), each[0]))[1].fstype if found else ""


def _system_mounts() -> list[Mount]:
    import psutil

    return [Mount(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
