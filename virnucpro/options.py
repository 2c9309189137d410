"""Settings as options of a command line: made of their declaration, under the same names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from virnucpro.base.errors import UserError
from virnucpro.base.paths import user_path
from virnucpro.base.setting import Setting
from virnucpro.base.settings import SETTINGS, EmbeddingSettings, InputPolicies, LongProteins
from virnucpro.calling.state import CallRule

LONG_PROTEINS = tuple(key for key in SETTINGS if key.startswith("long_proteins."))
POLICIES = tuple(field.name for field in fields(InputPolicies))
EMBEDDING = ("layers", "pooling", "precision", *LONG_PROTEINS)
DTYPE = "merge.dtype"
RULE = tuple(f"classify.{field.name}" for field in fields(CallRule))
TABLES = tuple(key for key in SETTINGS if key.startswith("merge."))


def add_files(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the FASTA files of a sample, and its folder."""
    parser.add_argument("fasta", nargs="+", type=path, help=f"{what}, plain or packed")
    parser.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="the sample's folder")


def add_options(parser: argparse.ArgumentParser, keys: Iterable[str], *, with_defaults: bool = True) -> None:
    """Give the parser the options of these settings: what each may be, its default and its help.

    Args:
        with_defaults: False leaves out of the arguments what is not given; see :func:`given_values`.
    """
    for key in keys:
        setting = SETTINGS[key]
        defaults = setting.default if setting.several else (setting.default,)
        choices = setting.words if setting.words and not (setting.numbers or setting.text) else None
        parser.add_argument(
            _option(setting),
            dest=key,
            nargs="+" if setting.several else None,
            choices=choices,
            metavar=None if choices else "N" if setting.numbers or setting.decimals else setting.name.upper(),
            default=setting.default if with_defaults else argparse.SUPPRESS,
            help=f"{setting.about.replace('%', '%%')} Default: {' '.join(map(str, defaults))}.",
        )


def values(given: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The settings that were given, each in its own type, by their names as arguments in Python.

    Raises:
        UserError: a value that is not allowed.
    """
    return {SETTINGS[key].name: SETTINGS[key].check(getattr(given, key)) for key in keys}


def given_values(given: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The settings that were given, each in its own type, by their keys.

    Raises:
        UserError: a value that is not allowed.
    """
    return {key: SETTINGS[key].check(getattr(given, key)) for key in keys if hasattr(given, key)}


def in_options(sentence: str) -> str:
    """A sentence about settings, in the words of a command line.

    >>> in_options("setting 'chunk_residues' can't be 0; set empty_records to skip")
    "option --chunk-residues can't be 0; give --empty-records skip"
    """
    return _reworded(sentence, lambda setting: f"option {_option(setting)}", lambda setting: f"{_option(setting)} ")


def in_arguments(sentence: str) -> str:
    """The same in the words of Python.

    >>> in_arguments("setting 'merge.dtype' can't be 0; set empty_records to skip")
    "argument 'dtype' can't be 0; give empty_records=skip"
    """
    return _reworded(sentence, lambda setting: f"argument {setting.name!r}", lambda setting: f"{setting.name}=")


P = ParamSpec("P")
R = TypeVar("R")


def speaking(words: Callable[[str], str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function's sentences be those of its callers; what it wraps is for callers of another kind."""

    def speaking_function(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def spoken(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except UserError as error:
                raise UserError(words(str(error))) from None

        return spoken

    return speaking_function


def _reworded(sentence: str, named: Callable[[Setting], str], given: Callable[[Setting], str]) -> str:
    """With each setting as the caller knows it, and with what the caller types to set it."""
    by_name = {setting.name: setting for setting in SETTINGS.values()}

    def of(found: re.Match[str], words: Callable[[Setting], str], before: str) -> str:
        name = next(filter(None, found.groups()))
        setting = SETTINGS.get(name) or by_name.get(name)
        return found[0] if setting is None else before + words(setting)

    sentence = re.sub(r"[Ss]etting '([a-z_.]+)'|'([a-z_]+\.[a-z_]+)'", lambda found: of(found, named, ""), sentence)
    return re.sub(r"\bset ([a-z_]+) to ", lambda found: of(found, given, "give "), sentence)


def path(text: str) -> Path:
    """A path on the command line, with ``~`` as the shell would take it."""
    try:
        return user_path(text, "path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _option(setting: Setting) -> str:
    """What a setting's option is called; that of a policy is named after what it is for."""
    name = setting.key.partition(".")[0] if setting.name == "policy" else setting.name
    return "--" + name.replace("_", "-")


def embedding_settings(given: argparse.Namespace) -> EmbeddingSettings:
    """The settings of :data:`EMBEDDING` in parsed arguments."""
    kept = [key for key in EMBEDDING if key not in LONG_PROTEINS]
    return EmbeddingSettings(**values(given, kept), long_proteins=LongProteins(**values(given, LONG_PROTEINS)))
