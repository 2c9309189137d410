"""Paths as users write them."""

from __future__ import annotations

import filecmp
import glob
import os
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.text import brief, short

LONGEST_NAME = 255
"""Bytes that Linux file systems take for the name of a file or folder."""

LONGEST_PATH = 4000
"""Bytes of a whole path; Linux takes 4096."""

LONGEST_FOLDER = 3000
"""Bytes of the whole path of a folder of ours: files with long names go below it."""


def user_path(text: str | os.PathLike[str], what: str) -> Path:
    """The path with ``~`` and ``~name`` replaced by the home folder.

    Args:
        what: for the sentence, such as ``"setting 'results'"``.

    Raises:
        UserError: there is no such user, no file system takes such a name, or it has control characters.
    """
    _check_letters(os.fspath(text), what)
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{what}: {short(str(text))} names the home folder of a user who does not exist") from None
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(
            f"{what}: {short(str(text))} is longer than a file system takes ({LONGEST_NAME} bytes a name, "
            f"{LONGEST_PATH} in all)"
        )
    return path


def without_patterns(path: Path, what: str) -> Path:
    """The path, where it has none of the signs by which Snakemake knows patterns: ``{}`` and ``<>``.

    Raises:
        UserError: it has one of them, or control characters (a pattern of the user's may have found such a file).
    """
    _check_letters(str(path), what)
    found = sorted(set(str(path)) & set("{}<>"))
    if found:
        raise UserError(
            f"{what}: {str(path)!r} has {' and '.join(found)} in it, which mean patterns to Snakemake: "
            "rename it, or give a link to it"
        )
    return path


def own_folder(text: str, what: str) -> Path:
    """The path of a folder that exists or can be made, with room below it for the names of our files.

    Raises:
        UserError: it is none of these, or a pattern to Snakemake.
    """
    path = without_patterns(user_path(text, what), what)
    if len(os.fsencode(path.absolute())) > LONGEST_FOLDER:
        raise UserError(
            f"{what}: {short(text)} leaves no room for the names of files in it (at most {LONGEST_FOLDER} bytes)"
        )
    for place in (path.absolute(), *path.absolute().parents):
        try:
            place.lstat()
            if not place.is_dir():
                raise UserError(f"{what}: {brief(str(place))} is a file, not a folder: name another")
            break
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{what}: {brief(str(place))} cannot be looked at ({error.strerror})") from None
    return path


def user_cache() -> Path:
    """The folder of virnucpro in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "virnucpro"


def matching(text: str, what: str, folder: Path | None, *, may_be_gone: bool = False) -> list[Path]:
    """Files or folders that a path or pattern names: seen from the working folder, or else from ``folder``.

    Args:
        folder: of the file that the path stands in, if it stands in one.
        may_be_gone: what is not there is given as it stands.

    Raises:
        UserError: there is none, or there are different ones in both places (other files, with other contents).
    """
    path = user_path(text, what)
    places = [Path()] if folder is None or path.is_absolute() else [Path(), folder]
    try:
        found = [paths for place in places if (paths := _at(place / path))]
        if not found and may_be_gone:
            return [places[-1] / path]
        if not found:
            raise UserError(f"{what}: {brief(text)} does not exist{_seen_from(places)}")
        if len(found) > 1 and not _are_same(*found):
            raise UserError(
                f"{what}: {brief(text)} is both in the working folder and in {folder}: "
                "give the whole path of the one you mean"
            )
    except OSError as error:
        raise UserError(f"{what}: {brief(text)} cannot be looked at ({error.strerror})") from None
    return found[0]


def _check_letters(path: str, what: str) -> None:
    # Half a surrogate pair is among them, and so is the zero byte.
    if not path.isprintable():
        raise UserError(f"{what}: {short(path)} has control characters in it: rename it, or give a link to it")


def _at(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    # Not Path.glob: it takes no pattern that begins at the root.
    return sorted(map(Path, glob.glob(str(path), recursive=True))) if glob.has_magic(str(path)) else []  # noqa: PTH207


def _are_same(here: list[Path], there: list[Path]) -> bool:
    """Whether what was found in two places is the same: it leaves nothing to choose."""
    return len(here) == len(there) and all(
        one.resolve() == other.resolve()
        or (one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False))
        for one, other in zip(here, there, strict=True)
    )


def _seen_from(places: list[Path]) -> str:
    names = [str(place.absolute()) for place in places]
    return f" (looked for in {' and in '.join(dict.fromkeys(names))})"
