"""Where settings are given: configuration files and ``--config``, read as the text that stands there.

Snakemake hands over what YAML makes of that text: sample 007 is 7, 010 is 8, no is False, and of a key that is there
twice the first is gone. So the files and the command line are read again, and scalars stay text; each setting knows
its own type.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from virnucpro.base.errors import UserError
from virnucpro.base.text import brief, short

LARGEST_FILE = 16 << 20
"""Bytes of a configuration file."""

MOST_VALUES = 1_000_000
"""Keys and values of a configuration, those of every alias counted wherever it stands."""


@dataclass(frozen=True)
class Source:
    """Settings as they stand in one place; ``folder`` is that of the file, where it is one."""

    name: str
    settings: Mapping[str, Any]
    folder: Path | None = None


def config_sources(workflow: Any, config: Mapping[str, Any], clone: Path | None) -> list[Source]:
    """Everything that this call of Snakemake takes settings from; what comes later wins.

    First ``config.yaml`` in the working folder, or else the one of the clone; then the files given by ``--configfile``,
    in their order; then ``--config``. A module takes what the module statement gives it, or else the clone's file.

    Args:
        workflow: the Snakefile's ``workflow`` object; the file that is read by itself is noted there for reports.
        config: the Snakefile's ``config``.
        clone: the folder that this workflow is in, where it is in one.

    Raises:
        UserError: a file that cannot be read or is no mapping, or a key that is there twice.
    """
    shipped = [clone / "config.yaml"] if clone is not None else []
    if not workflow.modifier.is_main_snakefile():
        if workflow.modifier.skip_configfile:
            return [Source("the module's config", config)]
        return [_file(path) for path in shipped if path.is_file()]
    options = workflow.config_settings
    own = [path for path in (Path("config.yaml"), *shipped) if path.is_file()][:1]
    if options.replace_workflow_config:
        own = []
    workflow.configfiles += map(str, own)
    sources = [_file(Path(path)) for path in (*own, *options.configfiles)]
    given = read_arguments(options.config_args) if options.config_args else dict(options.config)
    return [*sources, Source("--config", given)] if given else sources


def read_file(path: Path) -> dict[str, Any]:
    """What a YAML or JSON file holds, every scalar as text; an empty file holds nothing.

    Raises:
        UserError: it cannot be read, is too large, is neither YAML nor JSON, repeats itself too often, is no mapping,
            or has a key twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise UserError(f"{path} is larger than settings ever are ({LARGEST_FILE >> 20} MiB): is it the right file?")
    try:
        found = _from_json(data, path) if path.suffix == ".json" else yaml.load(data, _TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not right: {_reason(error)}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold settings as `key: value`, one a line, and holds {short(found)}")
    return found


def read_arguments(entries: Sequence[str]) -> dict[str, Any]:
    """What ``--config key=value ...`` gives: mappings, lists and quoted text by YAML, all else as it stands.

    Raises:
        UserError: a mapping with a key twice, or brackets that do not close.
    """
    given: dict[str, Any] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        given[key] = _argument(key, text.strip())
    return given


def _argument(key: str, text: str) -> Any:
    try:
        found = yaml.load(text, _TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if text.startswith(("{", "[")):
            raise UserError(f"--config {key}={short(text)} is not right: {_reason(error)}") from None
        return text
    if isinstance(found, (dict, list)) or (isinstance(found, str) and text.startswith(("'", '"'))):
        return found
    return text or None


def _file(path: Path) -> Source:
    return Source(str(path), read_file(path), path.parent)


def _reason(error: Exception) -> str:
    """One line out of what a parser says."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = ", ".join(brief(part) for part in (error.context, error.problem) if part)
        return f"{words} (line {mark.line + 1})" if mark else words
    if isinstance(error, yaml.reader.ReaderError):
        return f"it is not text in UTF-8 (byte {error.position})"
    return " ".join(str(error).split())


def _from_json(data: bytes, path: Path) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {short(twice)} is there twice")
        return found

    return json.loads(data, object_pairs_hook=mapping, parse_int=str, parse_float=str)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many keys and values the node stands for; 0 in ``known`` marks a node whose own are being counted."""
    if id(node) in known:
        count = known[id(node)]
        if not count:
            raise yaml.constructor.ConstructorError(None, None, "it refers to itself", node.start_mark)
        return count
    known[id(node)] = 0
    count = 1
    for part in [] if isinstance(node, yaml.ScalarNode) else node.value:
        count += sum(_values(one, known) for one in (part if isinstance(part, tuple) else (part,)))
        if count > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "it is repeated too often", node.start_mark)
    known[id(node)] = count
    return count


class _TextLoader(yaml.SafeLoader):
    """YAML whose numbers, dates and words such as no stay the text that they are; nothing stays None."""

    def get_single_node(self) -> yaml.Node | None:
        """The document, before anything is built of it: a few aliases of aliases would fill the memory."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _values(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {short(key.value)} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def text(self, node: yaml.ScalarNode) -> str:
        return str(self.construct_scalar(node))


for _kind in ("bool", "int", "float", "timestamp", "value"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _TextLoader.text)
