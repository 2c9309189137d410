"""Any sequence of edits, then a run: the tables are those of a fresh run, bit for bit, or the run says what is wrong.

Edits are drawn at random, from a seed that a failure names: of inputs and settings, of dates, of what lies in the
folders of results and weights, copies, and runs of a part. What is run is the workflow, or ``virnucpro.embed``, which
decides by the same code in a tenth of the time.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.workflow.fresh import write_fresh_tables
from tests.workflow.running import snakemake
from virnucpro import embed
from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef, planning_architecture
from virnucpro.storage.tables import TABLES, read_embeddings, read_residues

LOGGER = logging.getLogger("edits")
AMINO = "ACDEFGHIKLMNPQRSTVWY"
LENGTH, LENGTH_IN_CI = 10, 4
"""Sequences in a chain, one after the other in one folder."""


@dataclass
class Scene:
    """A folder with inputs, settings, and what earlier runs have left."""

    folder: Path
    chance: random.Random
    files: list[str] = field(default_factory=lambda: ["data/a.faa", "data/b.faa"])
    settings: dict[str, Any] = field(default_factory=dict)
    copies: int = 0

    @property
    def inputs(self) -> list[Path]:
        return [self.folder / file for file in self.files]

    @property
    def model(self) -> str:
        """Its name, or the path of its checkpoint."""
        name = str(self.settings["model"])
        return str(self.folder / name) if name.endswith(".pt") else name

    @property
    def formats(self) -> list[str]:
        return list(self.settings["formats"])

    def given(self, *names: str) -> dict[str, Any]:
        return {name: self.settings[name] for name in names}

    @property
    def policies(self) -> dict[str, str]:
        return self.given("empty_records", "duplicate_ids")

    def some_result(self) -> Path | None:
        """A file or folder that a run has made."""
        places = (self.folder / place for place in ("results/own", "results", "out", "resources"))
        found = [path for place in places for path in sorted(place.rglob("*"))]
        found = [path for path in found if not {"logs", "benchmarks"}.intersection(path.parts) and path.name[0] != "."]
        return self.chance.choice(found) if found else None


CHOICES: dict[str, list[Any]] = {
    "model": ["best.pt", "other/best.pt", "esm2_demo"],
    "layers": [[-1], [4], [2], [0, 3], ["last", 1]],
    "pooling": [["mean"], ["per_residue"], ["mean", "per_residue"]],
    "precision": ["fp32", "auto", "bf16"],
    "long_proteins": [
        {"policy": "window", "longest": 1022, "overlap": 511},
        {"policy": "window", "longest": 20, "overlap": 7},
        {"policy": "truncate", "longest": 20, "overlap": 7},
        {"policy": "full", "longest": 20, "overlap": 7},
    ],
    "empty_records": ["skip", "error"],
    "duplicate_ids": ["number", "skip", "header"],
    "formats": [["parquet"], ["npy"], ["hdf5", "parquet"], ["virnucpro_pt", "npy"], ["virnucpro_pt"]],
    "dtype": ["float32", "float16"],
    "records_per_file": [10_000, 3],
    "chunk_residues": [60, 120, 100_000],
}
"""The settings, each with values to choose from; the first ones to begin with."""


def protein(chance: random.Random) -> str:
    return "".join(chance.choices(AMINO, k=chance.randint(10, 40)))


def set_out(folder: Path, seed: int) -> Scene:
    """Two folders of two files, with a link to one of them; and two checkpoints of one name."""
    chance = random.Random(seed)
    for version in ("v1", "v2"):
        (folder / version).mkdir(parents=True)
        for name in "ab":
            records = [f">{name}{number} of {version}\n{protein(chance)}\n" for number in range(6)]
            (folder / version / f"{name}.faa").write_text("".join(records))
    (folder / "data").symlink_to("v1")
    (folder / "other").mkdir()
    for number, name in enumerate(("best.pt", "other/best.pt")):
        write_checkpoint(folder / name, DEMO_ARCHITECTURE, seed=number, regression=False)
    return Scene(folder, chance, settings={name: values[0] for name, values in CHOICES.items()})


def any_date(chance: random.Random) -> float:
    return chance.choice([86_400, 1_600_000_000, 4_000_000_000])


def other_records(scene: Scene) -> str:
    """A FASTA file's records changed, in place or by a new file, of any date."""
    chance = scene.chance
    path = chance.choice(scene.inputs)
    stat = path.stat()
    records = [f">{record}" for record in path.read_text().split(">")[1:]]
    at = chance.randrange(len(records))
    header, sequence = records[at].splitlines() if records[at].count("\n") == 2 else (records[at].strip(), "")
    change = chance.choice(["residue", "residue", "order", "id", "more", "fewer", "empty", "repeat", "twin"])
    if change == "residue":
        records[at] = f"{header}\n{sequence[:-1]}{chance.choice(AMINO)}\n"
    elif change == "order":
        chance.shuffle(records)
    elif change == "id":
        records[at] = f">{chance.choice('xyz')}{header[2:]}\n{sequence}\n"
    elif change == "more":
        records.insert(at, f">m{chance.randrange(99)}\n{protein(chance)}\n")
    elif change == "fewer" and len(records) > 3:
        del records[at]
    elif change == "empty":
        records.insert(at, f">e{chance.randrange(99)}\n*\n")
    elif change == "repeat":
        records.append(f"{header} again\n{protein(chance)}\n")
    elif change == "twin":
        records.append(f">t{chance.randrange(99)}\n{sequence or 'MK'}\n")
    target = path.resolve()
    if chance.random() < 0.5:
        target.unlink()
    target.write_text("".join(records))
    if chance.random() < 0.7:
        date = chance.choice([stat.st_mtime, any_date(chance)])
        os.utime(target, (date, date))
    return f"{path.name}: {change}"


def other_files(scene: Scene) -> str:
    orders = [["data/a.faa", "data/b.faa"], ["data/b.faa", "data/a.faa"], ["data/b.faa"]]
    scene.files = scene.chance.choice([order for order in orders if order != scene.files])
    return f"files {scene.files}"


def other_link(scene: Scene) -> str:
    link = scene.folder / "data"
    target = "v2" if str(link.readlink()) == "v1" else "v1"
    link.unlink()
    link.symlink_to(target)
    return f"link to {target}"


def other_checkpoint(scene: Scene) -> str:
    """Another model under the same name, older than all results."""
    name, seed = scene.chance.choice(["best.pt", "other/best.pt"]), scene.chance.randrange(4)
    beside = scene.folder / "beside.pt"
    write_checkpoint(beside, DEMO_ARCHITECTURE, seed=seed, regression=False)
    os.utime(beside, (86_400, 86_400))
    beside.replace(scene.folder / name)
    return f"{name} of seed {seed}"


def other_setting(scene: Scene) -> str:
    name = scene.chance.choice(list(CHOICES))
    scene.settings[name] = scene.chance.choice([value for value in CHOICES[name] if value != scene.settings[name]])
    fits = scene.settings["pooling"] == ["mean"] and len(scene.settings["layers"]) == 1
    if "virnucpro_pt" in scene.formats and not fits:
        scene.settings["formats"] = ["parquet"]
    return f"{name} {scene.settings[name]}, formats {scene.formats}"


def other_dates(scene: Scene) -> str:
    for path in sorted(scene.folder.rglob("*")):
        if ".snakemake" not in path.parts and scene.chance.random() < 0.5:
            date = any_date(scene.chance)
            os.utime(path, (date, date), follow_symlinks=False)
    return "dates"


def lost_file(scene: Scene) -> str:
    path = scene.some_result()
    if path is None:
        return "nothing to lose"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return f"lost {path.relative_to(scene.folder)}"


def lost_folder(scene: Scene) -> str:
    name = scene.chance.choice([".snakemake", "resources", "results/chunks", "results/tensors", "out/tensors"])
    shutil.rmtree(scene.folder / name, ignore_errors=True)
    return f"lost {name}"


def copied_elsewhere(scene: Scene) -> str:
    """All of it in another folder, without Snakemake's records, with the old dates or with new ones."""
    scene.copies += 1
    target = scene.folder.with_name(f"copy{scene.copies}")
    copy = scene.chance.choice([shutil.copy, shutil.copy2])
    ignored = shutil.ignore_patterns(".snakemake")
    shutil.copytree(scene.folder, target, symlinks=True, copy_function=copy, ignore=ignored)
    shutil.rmtree(scene.folder)
    scene.folder = target
    return f"copied by {copy.__name__}"


EDITS: list[Callable[[Scene], str]] = [
    *(other_records, other_records, other_files, other_link, other_checkpoint, other_setting, other_setting),
    *(other_dates, lost_file, lost_file, lost_folder, copied_elsewhere),
]


def run_workflow(scene: Scene, *arguments: str) -> tuple[int, str]:
    config = {
        "samples": {"own": scene.files},
        **scene.given("model", "layers", "pooling", "precision", "long_proteins", "chunk_residues"),
        **scene.policies,
        "merge": scene.given("formats", "dtype", "records_per_file"),
    }
    as_text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.items()}
    target = f"results/own/{TABLES[scene.formats[-1]].name}"
    result = snakemake(scene.folder, *(arguments or (target,)), config=as_text, cores=1)
    return result.code, result.text


def run_embed(scene: Scene) -> tuple[int, str]:
    settings = {**scene.settings, "model": scene.model}
    try:
        weights = scene.folder / "resources"
        embed(scene.inputs, scene.folder / "out", **settings, devices=["cpu"], weights_folder=weights)
    except UserError as error:
        return 1, str(error)
    return 0, ""


def fresh(scene: Scene, folder: Path, width: int) -> Path:
    """The tables of a run of the same inputs and settings in a folder where nothing is."""
    return write_fresh_tables(folder, scene.inputs, width, {**scene.settings, "model": scene.model})


def content(folder: Path, scene: Scene) -> dict[str, object]:
    """All that the tables of a sample's folder hold, and its index."""
    found: dict[str, object] = {"tables": sorted(t.name for t in TABLES.values() if (folder / t.name).exists())}
    # Where a vector lies depends on what was embedded before, not what it is.
    found["index"] = pq.read_table(folder / "proteins.parquet").drop_columns(["chunk", "row"]).to_pydict()
    skipped = [line.split("\t") for line in (folder / "skipped.tsv").read_text().splitlines()]
    found["skipped"] = [(name, Path(file).name, *rest) for name, file, *rest in skipped]
    layers = [layer % 5 if layer != "last" else 4 for layer in scene.settings["layers"]]
    for name in scene.formats:
        for layer in layers:
            if "mean" in scene.settings["pooling"]:
                ids, matrix = read_embeddings(folder / TABLES[name].name, layer)
                found[f"{name}, mean of layer {layer}"] = (list(ids), matrix.dtype.str, matrix.tobytes())
            if "per_residue" in scene.settings["pooling"]:
                residues = read_residues(folder / TABLES[name].name, layer)
                values = (list(residues.ids), np.asarray(residues.offsets).tolist(), residues.values.tobytes())
                found[f"{name}, residues of layer {layer}"] = values
    return found


def expected_content(scene: Scene, folder: Path, width: int) -> dict[str, object] | str:
    """What a fresh run's tables hold, or the sentence that it ends in."""
    try:
        made = fresh(scene, folder, width)
    except UserError as error:
        return str(error)
    return content(made, scene)


pytestmark = pytest.mark.usefixtures("one_thread")

CHAINS = [(0, LENGTH_IN_CI), *(pytest.param(seed, LENGTH, marks=pytest.mark.slow) for seed in range(1, 21))]


@pytest.mark.parametrize(("seed", "length"), CHAINS)
def test_after_any_edits_the_tables_are_those_of_a_fresh_run(tmp_path: Path, seed: int, length: int) -> None:
    scene = set_out(tmp_path / "scene", seed)
    for number in range(length):
        by_workflow = number % 5 in (0, 3)
        run, result = (run_workflow, "results/own") if by_workflow else (run_embed, "out")
        edits = [scene.chance.choice(EDITS)(scene) for _ in range(scene.chance.randint(1, 4))]
        if by_workflow and scene.chance.random() < 0.3:
            run_workflow(scene, "--until", "split_proteins")
            edits += ["split alone", scene.chance.choice(EDITS)(scene)]
        said = f"seed {seed}, sequence {number}, {run.__name__}: {edits}"
        print(said, scene.settings, scene.files)
        # Without the weights, the workflow cuts chunks for the width that the model's name tells.
        model = planning_architecture(ModelRef.of(scene.model)) if by_workflow else DEMO_ARCHITECTURE
        expected = expected_content(scene, tmp_path / f"fresh{number}", model.embed_dim)
        code, text = run(scene)
        if isinstance(expected, str):
            assert code != 0, f"{said}\n{expected}"
            scene.settings |= {"empty_records": "skip", "duplicate_ids": "number"}
            continue
        assert code == 0, f"{said}\n{text}"
        found = content(scene.folder / result, scene)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        assert not wrong, f"{said}\n{wrong} differ\n{text}"
