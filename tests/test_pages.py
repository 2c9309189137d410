"""What the pages for contributors and readers of the code say is so: places, versions, examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.architecture import ROOT, modules
from virnucpro import __version__

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\| (.+\?) \| `(.+?)` \| `(.+?)` \|$", CONTRIBUTING, re.MULTILINE)
RECORDS = sorted((ROOT / "docs" / "decisions").glob("2*.md"))


def test_there_are_questions() -> None:
    assert len(QUESTIONS) >= 10


@pytest.mark.parametrize(("question", "path", "words"), QUESTIONS, ids=[path for _, path, _ in QUESTIONS])
def test_a_strangers_question_is_answered_where_it_says(question: str, path: str, words: str) -> None:
    assert words in (ROOT / path).read_text(encoding="utf-8"), question


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/security.md"])
def test_paths_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:virnucpro|tests|workflow|docs|benchmarks|envs)/[\w./+-]*)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_functions_of_tests_that_contributing_names_are_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "unit").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+|MUTATIONS)`", CONTRIBUTING):
        assert re.search(rf"^(def )?{name}\b", tests, re.MULTILINE), name


def test_make_targets_that_contributing_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)[`#\n]", CONTRIBUTING):
        for target in words.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    assert f"## {__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_decision_is_short_and_in_the_list() -> None:
    listed = (RECORDS[0].parent / "README.md").read_text(encoding="utf-8")
    for record in RECORDS:
        lines = record.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 25, record.name
        assert f"- [{lines[0].removeprefix('# ')}]({record.name})" in listed
        assert "**Decision.**" in record.read_text(encoding="utf-8"), record.name
    assert listed.count("](2") == len(RECORDS)


def test_the_site_is_built_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    mkdocs = Path(sys.executable).with_name("mkdocs")
    command = [str(mkdocs), "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "Embed proteins and write tables of them" in api, "docstrings are there"
    assert 'class="mermaid"' in (tmp_path / "site" / "architecture" / "index.html").read_text(encoding="utf-8")


def with_examples() -> list[str]:
    return [name for name, path in modules().items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"virnucpro.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_hooks_call_the_tools_of_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "versions are pinned in envs/constraints.txt alone"
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        program = Path(sys.executable).with_name(hook["entry"].split()[0])
        assert program.exists(), hook["id"]
