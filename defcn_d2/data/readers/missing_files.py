"""Search for missing files, one listing a folder, which is quick on a network disk, too."""

from __future__ import annotations

import os
from collections.abc import Sequence


def missing_files(files: Sequence[str], folders_may_miss: bool = False) -> list[str]:
    """Missing ones of ``files``, in order; addresses with :// are taken as there.

    Args:
        files: paths.
        folders_may_miss: what lies in a folder that is not there is missing, too.

    Raises:
        OSError: a folder cannot be read, or is not there; its ``filename`` is the folder.
    """
    files = [file for file in files if "://" not in file]
    folders = {os.path.dirname(file): set[str]() for file in files}
    for folder, names in folders.items():
        try:
            names.update(os.listdir(folder or "."))
        except (FileNotFoundError, NotADirectoryError):
            if not folders_may_miss:
                raise
    return [file for file in files if os.path.basename(file) not in folders[os.path.dirname(file)]]
