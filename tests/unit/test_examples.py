"""The shipped example is what its README says, and its proteins and contigs agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BASES = "TCAG"
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"  # NCBI's table 1
CODE = {
    a + b + c: AMINO_ACIDS[16 * i + 4 * j + k]
    for i, a in enumerate(BASES)
    for j, b in enumerate(BASES)
    for k, c in enumerate(BASES)
}
COMPLEMENT = str.maketrans("ACGT", "TGCA")
PLACE = re.compile(r"(\S+?):(\d+)\.\.(\d+)\(([+-])\)$")


def read(name: str) -> dict[str, tuple[str, str]]:
    records = (EXAMPLES / name).read_text(encoding="ascii").split(">")[1:]
    found = {}
    for record in records:
        header, *lines = record.splitlines()
        found[header.split()[0]] = (header, "".join(lines))
    assert len(found) == len(records)
    return found


def place(header: str) -> tuple[str, int, int, str]:
    accession, first, last, strand = PLACE.search(header).groups()  # type: ignore[union-attr]
    return accession, int(first), int(last), strand


def translate(strand: str) -> str:
    return "".join(CODE[strand[i : i + 3]] for i in range(0, len(strand), 3))


def test_proteins_are_as_many_and_as_long_as_promised() -> None:
    proteins = read("viral_proteins.faa")
    lengths = {name: len(sequence.rstrip("*")) for name, (_, sequence) in proteins.items()}
    assert len(proteins) == 70
    assert sum(lengths.values()) == 18_694
    assert all(re.fullmatch(r"M[ACDEFGHIKLMNPQRSTVWY]+\*?", sequence) for _, sequence in proteins.values())
    assert min(lengths.values()) == 28
    # Lengths from the literature and UniProt: J, H, A, cI, cro, O, S, R, xis, spike, N, polyprotein.
    known = {"NP_040600.1": 1132, "NP_040595.1": 853, "NP_040581.1": 641, "NP_040628.1": 237, "NP_040629.1": 66,
             "NP_040631.1": 299, "NP_040644.1": 107, "NP_040645.1": 158, "NP_040610.1": 72,
             "QHD43416.1": 1273, "QHD43423.2": 419, "ANN44857.1": 3423}  # fmt: skip
    assert {name: lengths[name] for name in known} == known


def test_every_protein_is_as_long_as_its_gene() -> None:
    for header, sequence in read("viral_proteins.faa").values():
        _, first, last, _ = place(header)
        assert last - first + 1 == 3 * (len(sequence.rstrip("*")) + 1), header


def test_contigs_are_as_long_as_their_places() -> None:
    contigs = read("viral_contigs.fna")
    assert len(contigs) == 8
    lengths = []
    for header, sequence in contigs.values():
        _, first, last, _ = place(header)
        assert last - first + 1 == len(sequence)
        assert set(sequence.upper()) == set("ACGT")
        lengths.append(len(sequence))
    assert (min(lengths), max(lengths), sum(lengths)) == (300, 5000, 18_737)


@pytest.mark.parametrize("accession", ["NC_001416.1", "MN908947.3", "KX369547.1"])
def test_genes_on_the_contigs_translate_to_the_proteins(accession: str) -> None:
    """Each gene that is on a contig as a whole is the protein; the Zika polyprotein is checked by its two ends."""
    checked = 0
    for header, bases in read("viral_contigs.fna").values():
        contig, start, end, turned = place(header)
        if contig != accession:
            continue
        genome = bases.upper() if turned == "+" else bases.upper().translate(COMPLEMENT)[::-1]
        for title, protein in read("viral_proteins.faa").values():
            source, first, last, strand = place(title)
            from_, to = max(first, start), min(last, end)
            whole = first >= start and last <= end
            if source != accession or from_ > to or not (whole or source == "KX369547.1"):
                continue
            from_ += (first - from_) % 3  # whole codons
            to -= (to - first + 1) % 3
            gene = genome[from_ - start : to - start + 1]
            found = translate(gene if strand == "+" else gene.translate(COMPLEMENT)[::-1])
            if whole:
                assert "M" + found[1:].rstrip("*") == protein.rstrip("*"), title
            else:
                assert len(found) > 700
                assert found in protein
            checked += 1
    assert checked == {"NC_001416.1": 13, "MN908947.3": 4, "KX369547.1": 2}[accession]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "from_fasta_to_map.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "from_fasta_to_map.ipynb", "exec"), names)
    assert "(70, 64)" in capsys.readouterr().out
    assert (tmp_path / "notebook_results" / "map.html").stat().st_size > 200_000
