"""Where Detectron2's source archives come from: GitHub, or the package index that pip uses."""

from __future__ import annotations

import http.client
import io
import tarfile
import threading
import urllib.request
from pathlib import Path


class InstallError(RuntimeError):
    """Detectron2 could not be installed; the message says why and what helps."""


class Unavailable(Exception):
    """This source cannot be had here: the next one is tried."""


def unpack(archive: bytes, folder: Path) -> Path:
    """Unpack a source archive; the path of its single top folder.

    Raises:
        InstallError: the bytes are no archive, or one that does not hold one folder.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:
                tar.extractall(folder)  # only checked archives come here
    except tarfile.TarError as error:
        raise InstallError(f"the downloaded archive cannot be unpacked: {error}") from error
    tops = [path for path in folder.iterdir() if path.is_dir()]
    if len(tops) != 1:
        raise InstallError(f"expected one folder in the archive, found {len(tops)}")
    return tops[0]


def download_within(url: str, patience: float) -> bytes:
    """The contents of a URL whose server begins to answer within ``patience`` seconds.

    Args:
        url: http or https address; proxies are taken from the environment.
        patience: seconds for the name's resolution, the connection and the first answer together;
            then for each further piece.

    Raises:
        Unavailable: no answer in time, or an error instead of one.
    """
    answered = threading.Event()
    outcome: list[bytes | Exception] = []

    def work() -> None:
        try:
            with urllib.request.urlopen(url, timeout=patience) as response:
                answered.set()
                outcome.append(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome.append(error)
            answered.set()

    # A thread, because a name that nobody resolves can hold urlopen for longer than its timeout.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    if not answered.wait(patience):
        raise Unavailable(f"no answer from {url} within {patience:.0f} s")
    thread.join()
    if isinstance(outcome[0], Exception):
        raise Unavailable(f"{url} cannot be reached ({outcome[0]})")
    return outcome[0]


def download_sdist(name: str, version: str) -> bytes:
    """The source archive of a release, from wherever pip is set up to look.

    ``pip download`` would build the metadata too, and refuses Detectron2's release for an optional
    dependency that it declares by URL. So pip is asked for the file alone, which honours its
    configuration: index and extra indexes, find-links, proxy, certificates, credentials.

    Raises:
        InstallError: pip finds no such file, or this pip cannot be asked.
    """
    remedy = (
        f"download the source archive of {name} {version} by hand and set DETECTRON2 to its path"
    )
    try:
        from pip._internal.commands.download import DownloadCommand

        command = DownloadCommand("download", "")
        options, _ = command.parse_args(["--quiet"])
        with command.main_context():
            session = command.get_default_session(options)
            finder = command._build_package_finder(options, session)
            candidates = finder.find_all_candidates(name)
            links = [
                candidate.link
                for candidate in candidates
                if str(candidate.version) == version and not candidate.link.is_wheel
            ]
            if not links:
                raise InstallError(
                    f"the package index has no {name}=={version}, or cannot be "
                    f"reached: check the network and `pip config list` (PIP_INDEX_URL), or {remedy}"
                )
            response = session.get(
                links[-1].url_without_fragment, headers={"Accept-Encoding": "identity"}
            )
            response.raise_for_status()
            return response.content
    except (ImportError, AttributeError, TypeError) as error:
        raise InstallError(
            f"this version of pip cannot be asked for a source archive ({error}): {remedy}"
        ) from error
    except OSError as error:  # every error of pip's HTTP client is one
        raise InstallError(f"{name}=={version} could not be downloaded: {error}") from error
