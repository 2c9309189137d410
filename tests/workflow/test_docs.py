"""What README and docs tell people to type is typed here: commands, Python examples, tables of figures.

A block is run as it stands, but for what a test cannot have: the model's name becomes ``esm2_demo``, the place of the
clone this one, and commands that need a full-size model, a cluster or GPUs are run as dry runs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.tables import accuracy_table, speed_table
from tests.workflow.running import ROOT, forked_python, snakemake
from virnucpro.engine.run import LOWEST_BUDGET, bytes_per_token
from virnucpro.models.esm2.sizes import ESM2_MODELS
from virnucpro.plan import H200_TOKENS_PER_SECOND

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEVELOPERS = [
    ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/results/README.md")
]
"""Pages for those who change the code, and the decisions: their links are followed, their commands are not typed."""
FASTA = ">a\nMKVLAAGIV\n>b\nMKVX\n" + "".join(f">p{n}\nM{'KVLAAGIVE'[: n + 2] * 3}\n" for n in range(7))
ALL_FORMATS = "{formats: [parquet, hdf5, npy, virnucpro_pt]}"
SUBSTITUTES = {
    "esm2_t33_650M_UR50D": "esm2_demo",
    '"[20, 33]"': '"[2, 4]"',
    "doctor --model esm2_demo": "doctor --model esm2_demo --proteins 4 --longest 100",
    "/path/to/virnucpro": str(ROOT),
}
ELSEWHERE = ("git ", "conda ", "pip ", "sbatch", "squeue", "sinfo", "ssh ", "cd ", ".venv/", "python ")
"""Beginnings of commands that other tests run, or that need what a test machine lacks."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and the comment before it (``<!-- needs: x -->``)."""

    page: Path
    line: int
    language: str
    text: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    fence = r"(?:<!-- (?P<needs>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    pattern = re.compile(fence, re.MULTILINE | re.DOTALL)
    for page in PAGES:
        content = page.read_text()
        for match in pattern.finditer(content):
            line = content.count("\n", 0, match.start("text"))
            kind = match["language"]
            if kind == "python" and re.search(r"^module \w+:", match["text"], re.MULTILINE):
                kind = "snakemake"
            if kind == language:
                found.append(Block(page, line, kind, match["text"], match["needs"] or ""))
    return found


def substituted(text: str) -> str:
    for word, other in SUBSTITUTES.items():
        text = text.replace(word, other)
    return text


def environment() -> dict[str, str]:
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    modules = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": os.pathsep.join(filter(None, modules))}
    return found | {"VIRNUCPRO_DISPLAY": ""}


def embedded(folder: Path, **config: str) -> Path:
    (folder / "my.faa").write_text(FASTA)
    result = snakemake(folder, config={"samples": "my.faa", "model": "esm2_demo", **config})
    assert result.code == 0, result.text
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which the sample ``my`` was embedded: means in all formats; and residues."""
    return {
        "": embedded(tmp_path_factory.mktemp("docs"), merge=ALL_FORMATS),
        "needs: per_residue": embedded(
            tmp_path_factory.mktemp("residues"), pooling="per_residue", merge="{formats: [parquet, chunk_files]}"
        ),
    }


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_examples_run(block: Block, finished: dict[str, Path], tmp_path: Path) -> None:
    for name in re.findall(r"^\s*(?:import|from) (\w+)", block.text, re.MULTILINE):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if '"cuda"' in block.text and not torch.cuda.is_available():
        pytest.skip("needs a GPU and a full-size model")
    folder = tmp_path / "run"
    shutil.copytree(finished[block.needs], folder, symlinks=True)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", substituted(block.text)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "print(" in block.text:
        assert done.stdout.strip()


@pytest.mark.parametrize("block", blocks("snakemake"), ids=str)
def test_snakefiles_run(block: Block, tmp_path: Path) -> None:
    (tmp_path / "my.faa").write_text(FASTA)
    text = substituted(block.text)
    if "default_target" not in text:
        text += "\nrule everything:\n    default_target: True\n    input: rules.embedding_all.input\n"
    (tmp_path / "Snakefile").write_text(text)
    result = snakemake(tmp_path, *(() if "count.txt" in text else ("--dry-run",)), snakefile=tmp_path / "Snakefile")
    assert result.code == 0, result.text
    if "count.txt" in text:
        assert (tmp_path / "count.txt").read_text() == "9\n"


def commands() -> list[tuple[Block, str]]:
    """Each command once, with the first block that has it."""
    found: dict[str, Block] = {}
    for block in [*blocks("bash"), *blocks("sh"), *blocks("console")]:
        for line in block.text.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*$", "", line).strip().removeprefix("$ ")
            if command and not command.startswith(("#", ". ", *ELSEWHERE)):
                found.setdefault(" ".join(command.split()), block)
    return [(block, command) for command, block in found.items()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a user's own FASTA in it."""
    folder = tmp_path_factory.mktemp("clone") / "virnucpro"
    for name in ("workflow", "virnucpro", "envs", "examples", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.yaml", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "slurm").symlink_to("workflow/profiles/slurm")
    return embedded(folder, results="results")


@pytest.mark.parametrize(("block", "command"), commands(), ids=lambda value: str(value)[:60])
def test_commands_run(block: Block, command: str, clone: Path, tmp_path: Path) -> None:
    command = substituted(command).replace("/path/to/run", str(tmp_path))
    (tmp_path / "my.faa").write_text(FASTA)
    runs = "model=esm2_demo" in command or "--unlock" in command
    # What the README runs are new processes, as of those who type it; the rest is forked.
    is_real = "model=esm2_demo" in command and block.page.name == "README.md"
    python, needs = (sys.executable, {}) if is_real else forked_python()
    if command.startswith("make"):
        command = command.replace("make", "make --dry-run", 1)
    elif command.startswith("snakemake"):
        options = "" if runs else " --dry-run"
        command = command.replace("snakemake", f"{python} -m snakemake{options}", 1)
        if "--unlock" in command and "--cores" not in command:
            command += " --cores 1 --config model=esm2_demo"
    elif command.startswith("virnucpro"):
        command = command.replace("virnucpro", f"{python} -m virnucpro.cli", 1)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env=environment() | needs,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    if (
        "-m snakemake --cores" in command and "--dry-run" not in command
    ):  # what it shows of a run that is not for a terminal
        assert len(done.stderr.splitlines()) + len(done.stdout.splitlines()) <= 25, done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stderr + done.stdout)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, *DEVELOPERS, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_the_table_of_memory_is_computed_from_the_models() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    for name, sizes in ESM2_MODELS.items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
        layers, width, parameters, *memory = (cell.strip() for cell in row.split("|"))
        assert (int(layers), int(width)) == (sizes.layers, sizes.embed_dim)
        assert parameters == f"{sizes.parameters / 1e6:,.0f} million"
        said = [float(cell.removesuffix(" GiB")) for cell in memory]
        dtypes = (torch.float16, torch.float32)
        batches = [LOWEST_BUDGET * bytes_per_token(sizes.embed_dim, 1, dtype) for dtype in dtypes]
        weights = [2 * sizes.parameters, 4 * sizes.parameters]
        needed = [weight + batch + 2**30 for weight, batch in zip(weights, batches, strict=True)]
        assert said == pytest.approx([size / 2**30 for size in [*weights, *needed]], abs=0.06), name


def test_the_speeds_of_docs_and_dry_runs_are_the_same() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| packed")]
    speeds = [[int(cell.replace(",", "")) for cell in re.findall(r"\| ([\d,]+) (?=\|)", row)] for row in rows]
    assert list(H200_TOKENS_PER_SECOND.values()) in speeds
    rate = H200_TOKENS_PER_SECOND["esm2_t36_3B_UR50D"]
    assert f"about {round(302e6 / rate / 60)} minutes with 3B" in text


def test_the_readmes_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert accuracy_table() in text
    assert speed_table() in text


def test_every_model_and_config_key_is_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in [*ESM2_MODELS, "esm2_demo", "chunk_residues", "long_proteins", "pooling", "layers", "precision"]:
        assert name in text
