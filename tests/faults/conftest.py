import os
import subprocess

import pytest


class SmallDisk:
    """A file system of 4 MiB.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder):
        self.folder = folder
        self._filler = folder / "filler"

    def leave(self, size):
        """Fill it up to so many bytes, a multiple of 4096."""
        self._filler.unlink(missing_ok=True)
        free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        with open(self._filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - size))
        assert os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize == size

    def mount(self, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=4m", *options)), "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    disk = SmallDisk(tmp_path / "disk")
    try:
        mounted = disk.mount()
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here, which takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)
