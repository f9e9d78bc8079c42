"""Names of files to read and to write."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..utils.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(inputs: Iterable[str]) -> list[str]:
    """Files that images, folders and patterns name, in order.

    A named file is taken as it is, whether it is an image or there at all; of a folder, the files
    directly in it that are images by their suffix.

    Raises:
        UserError: a folder or a pattern without any.
    """
    files: list[str] = []
    for name in map(os.path.expanduser, inputs):
        if os.path.isdir(name):
            paths = [os.path.join(name, file) for file in sorted(os.listdir(name))]
            found = [path for path in paths if path.lower().endswith(SUFFIXES)]
        elif glob.has_magic(name) and not os.path.exists(name):
            paths = sorted(glob.glob(name, recursive=True))
            found = [path for path in paths if os.path.isfile(path)]
        else:
            found = [name] if name else []
        if not found:
            raise UserError(f"--input {name!r} holds no image ({', '.join(SUFFIXES)})")
        files.extend(found)
    return files


def output_files(inputs: Sequence[str], output: str) -> list[Path]:
    """A file for each input: ``output`` itself for a single image, else in the folder ``output``.

    The folder is made. Names that occur twice there get a number; what has no
    suffix of an image becomes a .png.

    Raises:
        UserError: ``output`` is a file, but there are several inputs; or it cannot be made.
    """
    target = Path(output).expanduser()
    single = len(inputs) == 1 and target.suffix.lower() in SUFFIXES and not target.is_dir()
    make_folder(target.parent if single else target)
    if single:
        return [target]
    files: list[Path] = []
    for name in inputs:
        path = target / Path(name).name
        if path.suffix.lower() not in SUFFIXES:
            path = path.with_name(path.name + ".png")
        stem, number = path.stem, 1
        while path in files:
            number += 1
            path = path.with_name(f"{stem}_{number}{path.suffix}")
        files.append(path)
    return files


def make_folder(folder: Path, option: str = "--output") -> None:
    """Make a folder that an option names; ``UserError`` where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}: cannot make the folder {str(folder)!r} ({error.strerror}); give another"
        ) from error
