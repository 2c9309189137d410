"""The rules of docs/architecture.md: rooms in one order, no rings, types between rooms, files of a readable size.

What breaks a rule today is named in a list here; a name that is no longer needed there fails the test too, so the lists
only shrink.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from statistics import median

import pytest

from tests.architecture import (
    BEGIN,
    ORDER,
    PAGE,
    ROOT,
    drawn,
    imported_names,
    imports,
    level,
    modules,
    room,
    third_party,
    walk,
)

UPWARD: set[tuple[str, str]] = set()
"""Imports against the order, to be removed."""

LAZY_FOR_NOTHING: set[tuple[str, str]] = set()
"""Imports inside of functions that keep no library away, to be removed."""

LONGEST = 400
TOO_LONG: set[str] = set()
"""Files of more than 400 lines, to be shortened."""

SHORT, SHORT_FILES = 50, 3
"""An idea of fewer lines than this seldom needs a file of its own; so many files may be as short."""

TAKE_ANYTHING = {
    "base.records.from_entries": "what stands in a file, of which everything is to be checked",
    "checkpoints.files.read_json": "the same",
    "config.json_schema": "JSON schema, which is a mapping of anything",
    "config.merged": "what a user wrote, as it was written",
    "config_files.config_sources": "what a user wrote, of which everything is to be checked",
    "config_files.read_arguments": "the same",
    "config_files.read_file": "the same",
    "options.given_values": "the arguments of several functions, each checked by its setting",
    "options.values": "the arguments of several functions, each checked by its setting",
    "models.esm2_flash.ESM2WithFlashAttention.forward": "fair-esm's interface",
}
"""Public functions with a mapping of text to anything among their parameters or as their result, and why."""

UNTYPED: set[str] = set()
"""Those that are to be given a type."""


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert {room(module) for module in modules()} == set(chain(*ORDER))


def test_imports_point_down() -> None:
    upward = {
        (one.importer, one.imported)
        for one in imports()
        if room(one.importer) != room(one.imported) and level(room(one.importer)) <= level(room(one.imported))
    }
    assert upward - UPWARD == set(), "imported against the order of rooms"
    assert UPWARD - upward == set(), "no longer imported: take it from the list"


def test_modules_form_no_ring() -> None:
    below: dict[str, set[str]] = {module: set() for module in modules()}
    for one in imports():
        if not one.for_types and one.imported != one.importer:
            below[one.importer].add(one.imported)
    # Modules whose imports are all placed are placed next; what is left over stands in a ring, or above one.
    while ready := {module for module, others in below.items() if not others & set(below)}:
        below = {module: others for module, others in below.items() if module not in ready}
    assert {module: sorted(others & set(below)) for module, others in below.items()} == {}


def test_an_import_inside_of_a_function_keeps_a_library_away() -> None:
    """Else it hides who needs whom. At the edges it may also keep our own modules away, for a quick start."""
    for_nothing = {
        (one.importer, one.imported)
        for one in imports()
        if one.lazy and room(one.importer) != "edges" and not third_party(one.imported) - third_party(one.importer)
    }
    assert for_nothing - LAZY_FOR_NOTHING == set()
    assert LAZY_FOR_NOTHING - for_nothing == set(), "no longer so: take it from the list"


def test_files_are_of_a_readable_size(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    files = {module: count for module, count in lines.items() if modules()[module].name != "__init__.py"}
    short = sorted(module for module, count in files.items() if count < SHORT)
    with capsys.disabled():
        print(
            f"\n{len(lines)} files, {len(files)} of them no __init__, of {median(files.values()):.0f} lines (median);"
        )
        print(f"{sum(lines.values())} lines; under {SHORT}: {', '.join(short)}")
    assert {module for module, count in files.items() if count > LONGEST} == TOO_LONG, "more, or fewer than the list"
    assert len(short) <= SHORT_FILES


def public_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods that other modules may call, with their names."""
    for module, path in modules().items():
        todo: list[tuple[str, ast.AST]] = [(module, ast.parse(path.read_text(encoding="utf-8")))]
        while todo:
            prefix, owner = todo.pop()
            for node in ast.iter_child_nodes(owner):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                    name = f"{prefix}.{node.name}"
                    if isinstance(node, ast.FunctionDef):
                        yield name, node
                    else:
                        todo.append((name, node))


def untyped(function: ast.FunctionDef) -> bool:
    """Whether a parameter or the result is a mapping of text to anything."""
    given = function.args
    hints = [one.annotation for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)] + [function.returns]
    told = " ".join(ast.unparse(hint) for hint in hints if hint is not None)
    return any(f"{kind}[str, {what}]" in told for kind in ("dict", "Mapping") for what in ("Any", "object"))


def test_what_crosses_rooms_has_a_type() -> None:
    """A dictionary of anything tells its reader nothing, and mypy neither: records that cross rooms are dataclasses."""
    found = {name for name, function in public_functions() if untyped(function)}
    assert found - set(TAKE_ANYTHING) - UNTYPED == set()
    assert (set(TAKE_ANYTHING) | UNTYPED) - found == set(), "no longer so: take it from the list"


def test_each_rule_has_a_script_that_calls_one_function() -> None:
    """The table of docs/architecture.md, read back from the rules and the scripts."""
    told = re.findall(
        r"^\| `(\w+)` \| `(\w+\.py)` \| `([\w.]+)\.(\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    rules = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    found = re.findall(
        r"^(?:rule|checkpoint) (\w+):(?:\n(?!rule |checkpoint ).*)*?\n +\"\.\./scripts/(\w+\.py)\"", rules, re.MULTILINE
    )
    assert sorted((rule, script) for rule, script, *_ in told) == sorted(found)
    for _, script, module, function in told:
        tree = ast.parse((ROOT / "workflow" / "scripts" / script).read_text(encoding="utf-8"))
        given = {name for node, *_ in walk(tree) for name in imported_names(node)}
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert f"{module}.{function}" in given, script
        assert function in called, script


def test_the_picture_is_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert BEGIN in page
    assert page == drawn(page), "python -m tests.architecture"
