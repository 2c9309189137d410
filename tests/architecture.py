"""The rooms of the package in their order, what they import, and the picture of it in docs/architecture.md.

``python -m tests.architecture`` redraws the picture; ``tests/test_architecture.py`` holds the rules.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "virnucpro"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by python -m tests.architecture -->\n", "<!-- end -->\n"

ORDER: tuple[tuple[str, ...], ...] = (
    ("base",),
    ("sequences", "kernels", "cuda", "checkpoints"),
    ("attention",),
    ("models",),
    ("chunking",),
    ("weights",),
    ("storage",),
    ("calling", "engine"),
    ("config",),
    ("slurm", "report"),
    ("edges",),
)
"""The rooms from the ground up: each may import those of the lines before it, and none of its own line or above."""

HOLDS = {
    "config": ("config", "config_files", "run_state", "samples"),
    "edges": (
        "",
        "api",
        "cli",
        "display",
        "doctor",
        "foreseen",
        "gpu_report",
        "jobs",
        "launch",
        "models",
        "models.esm2_flash",
        "moving_line",
        "options",
        "plan",
        "steps",
        "store",
    ),
}
"""Rooms that are not the folder of their name. ``models`` is its ``__init__`` alone, which offers ``esm2_flash``."""

SAYS = {
    "config": "What a run is asked for: settings, samples, and what is left to do",
    "edges": "What people and rules call: command line, Python, doctor, the frame of a job, fair-esm's interface.",
}
"""In the picture a folder is told by the first line of its ``__init__``; these are no folders."""


@dataclass(frozen=True)
class Import:
    """One import of one module; names without the package's own: ``engine.job``, and ``""`` for the package itself."""

    importer: str
    imported: str
    line: int
    lazy: bool
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room that a module is in.

    Raises:
        KeyError: it has no place in ORDER.
    """
    for name, own in HOLDS.items():
        if module in own:
            return name
    folder = module.partition(".")[0]
    if folder not in chain(*ORDER):
        raise KeyError(f"{PACKAGE}.{module} has no place in ORDER (tests/architecture.py)")
    return folder


def level(room: str) -> int:
    return next(number for number, rooms in enumerate(ORDER) if room in rooms)


@cache
def imports() -> tuple[Import, ...]:
    """What the package's modules import of each other, at any depth."""
    return tuple(chain.from_iterable(_imports_of(module, path) for module, path in modules().items()))


def _imports_of(module: str, path: Path) -> Iterator[Import]:
    for node, lazy, for_types in walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imported_names(node):
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            target = next(t for t in (".".join(parts[1:end]) for end in range(len(parts), 0, -1)) if t in modules())
            if name != f"{PACKAGE}.__version__":  # a fact, which stands in the package's __init__ by custom
                yield Import(module, target, node.lineno, lazy, for_types)


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """``from a import b`` as ``a.b``, which may be a module or a name in one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports name the whole path"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def walk(
    tree: ast.AST, lazy: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Every import, whether it stands in a function, and whether type checkers alone see it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, lazy, for_types
            continue
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typed = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        yield from walk(node, inside, typed)


@cache
def third_party(module: str) -> frozenset[str]:
    """Libraries that are imported when the module is, by it or by what it imports."""
    found: set[str] = set()
    todo, done = [module], set()
    while todo:
        here = todo.pop()
        if here in done:
            continue
        done.add(here)
        for node, lazy, for_types in walk(ast.parse(modules()[here].read_text(encoding="utf-8"))):
            if not lazy and not for_types:
                found |= {name.partition(".")[0] for name in imported_names(node)}
        todo += [one.imported for one in imports() if one.importer == here and not one.lazy and not one.for_types]
    return frozenset(found - set(sys.stdlib_module_names) - {PACKAGE})


def edges() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    return {(a, b) for one in imports() if (a := room(one.importer)) != (b := room(one.imported))}


def without_detours(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs that do not follow from others: a -> c is left out where a -> b -> c is there."""

    def reachable(start: str, skip: tuple[str, str]) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            here = todo.pop()
            onward = {b for a, b in pairs if a == here and (a, b) != skip} - found
            found |= onward
            todo += onward
        return found

    return {pair for pair in pairs if pair[1] not in reachable(pair[0], skip=pair)}


def picture() -> str:
    """The rooms and who imports whom, as a Mermaid graph; arrows that point up, which nobody wants, are dotted."""
    down = {(a, b) for a, b in edges() if level(a) > level(b)}
    lines = ["```mermaid", "flowchart TD"]
    for name in chain(*reversed(ORDER)):
        lines.append(f'  {name}["<b>{name}</b><br/>{_about(name)}"]')
    lines += [f"  {a} --> {b}" for a, b in sorted(without_detours(down))]
    lines += [f"  {a} -.-> {b}" for a, b in sorted(edges() - down)]
    return "\n".join([*lines, "```", ""])


def _about(name: str) -> str:
    if name in SAYS:
        return SAYS[name].rstrip(".")
    text = ast.get_docstring(ast.parse(modules()[name].read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace('"', "'")


def drawn(page: str) -> str:
    """The page with the picture of today."""
    return re.sub(
        f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: picture(), page, count=1, flags=re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"drew {len(edges())} ties between rooms in {PAGE.relative_to(ROOT)}")
