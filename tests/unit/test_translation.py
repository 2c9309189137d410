"""Windows, frames, ids and nucleotides as VirNucPro makes them: hand-worked cases and a plain re-statement."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies
from virnucpro.sequences import translation
from virnucpro.sequences.translation import cut_windows, translate_contigs

# The standard genetic code as NCBI prints it (table 1): residues, then first, second and third base.
RESIDUES = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
BASE_1 = "TTTTTTTTTTTTTTTTCCCCCCCCCCCCCCCCAAAAAAAAAAAAAAAAGGGGGGGGGGGGGGGG"
BASE_2 = "TTTTCCCCAAAAGGGGTTTTCCCCAAAAGGGGTTTTCCCCAAAAGGGGTTTTCCCCAAAAGGGG"
BASE_3 = "TCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAGTCAG"
CODE = {a + b + c: residue for a, b, c, residue in zip(BASE_1, BASE_2, BASE_3, RESIDUES, strict=True)}
CONTIGS = st.text("ACGTacgtNRYSWKMBDHVUX-", min_size=1, max_size=90).filter(lambda s: s.strip("-") != "")
PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A"}


def plain_windows(length: int, window: int) -> list[tuple[int, int]]:
    """The rule of the documentation, one window after the other."""
    n = -(-length // window)
    excess = n * window - length
    low = excess // n
    wider = excess - low * (n - 1)
    found, shift = [], 0
    for i in range(n):
        start = i * window - shift
        found.append((start, min(start + window, length)))
        shift += low + 1 if i < wider else low
    return found


def plain_frames(contig: str, bases: str, window: int) -> list[tuple[str, str, str]]:
    """(id, protein, nucleotides) of every stop-free frame, base by base."""
    found = []
    for i, (start, end) in enumerate(plain_windows(len(bases), window)):
        forward = bases[start:end].upper()
        backward = "".join(PAIRS.get(base, base) for base in reversed(forward))
        for letter, strand in (("F", forward), ("R", backward)):
            for f in (1, 2, 3):
                codons = [strand[k : k + 3] for k in range(f - 1, len(strand) - 2, 3)]
                protein = "".join(CODE.get(codon, "") for codon in codons)
                if protein and "*" not in protein:
                    name = f"{contig}_chunk_{i + 1}{letter}{f}"
                    found.append((name, protein, strand[f - 1 : f + 3 * len(protein)]))
    return found


def translated(folder: Path, text: str, window: int) -> list[tuple[str, str, str]]:
    folder.mkdir(exist_ok=True)
    (folder / "in.fna").write_text(text)
    policies = InputPolicies(suspicious="accept")
    translate_contigs([folder / "in.fna"], folder / "out.faa", folder / "out.fna", window=window, policies=policies)
    proteins = (folder / "out.faa").read_text().split("\n")
    nucleotides = (folder / "out.fna").read_text().split("\n")
    assert proteins[::2] == nucleotides[::2]
    ids = [header.removeprefix(">") for header in proteins[:-1:2]]
    return list(zip(ids, proteins[1::2], nucleotides[1::2], strict=True))


def test_hand_worked_windows() -> None:
    # 1200 bases in windows of 500: 3 windows, 300 too long; overlaps 100 + 1, 100: the first two overlaps take
    # 300 - 100 * 2 = 100 wider ones, so both are 101.
    assert plain_windows(1200, 500) == [(0, 500), (399, 899), (798, 1200)]
    # 501 bases: 2 windows, 499 too long, low 249, 250 wider ones but one overlap only: 250.
    assert plain_windows(501, 500) == [(0, 500), (250, 501)]
    assert plain_windows(500, 500) == [(0, 500)]
    assert plain_windows(17, 500) == [(0, 17)]
    # 1499: 3 windows, 1 too long, low 0, one wider overlap: the second window starts a base early.
    assert plain_windows(1499, 500) == [(0, 500), (499, 999), (999, 1499)]
    for length in (1200, 501, 500, 17, 1499):
        cut = cut_windows(np.array([length]), 500)
        assert list(zip(cut.start.tolist(), cut.end.tolist(), strict=True)) == plain_windows(length, 500)


@pytest.mark.parametrize("window", [3, 10, 300, 500])
def test_windows_of_many_lengths(window: int) -> None:
    lengths = [*range(1, 12 * min(window, 60)), 9999, 10**6 + 7]
    cut = cut_windows(np.array(lengths), window)
    wanted = [(c, i, *place) for c, n in enumerate(lengths) for i, place in enumerate(plain_windows(n, window))]
    assert list(zip(*(column.tolist() for column in cut), strict=True)) == wanted


def test_a_hand_worked_contig(tmp_path: Path) -> None:
    # ATGGCC: F1 ATG GCC = MA; F2 TGG = W; F3 GGC = G. Reverse GGCCAT: R1 GGC CAT = GH; R2 GCC = A; R3 CCA = P.
    # One base more than 3 p is kept where the strand has it.
    assert translated(tmp_path, ">c1 a contig\natggcc\n", 500) == [
        ("c1_chunk_1F1", "MA", "ATGGCC"),
        ("c1_chunk_1F2", "W", "TGGC"),
        ("c1_chunk_1F3", "G", "GGCC"),
        ("c1_chunk_1R1", "GH", "GGCCAT"),
        ("c1_chunk_1R2", "A", "GCCA"),
        ("c1_chunk_1R3", "P", "CCAT"),
    ]


def test_codons_with_other_letters_add_nothing(tmp_path: Path) -> None:
    # F1 ATG NNN GCC = MA, and the bases kept are the first 7, though the frame is 9 long. F2 TGN NNG: empty, dropped.
    # Reverse GGCNNNCAT: R1 GGC NNN CAT = GH. R2 GCN NNC, R3 CNN NCA: empty.
    assert translated(tmp_path, ">c\nATGNNNGCC\n", 500) == [
        ("c_chunk_1F1", "MA", "ATGNNNG"),
        ("c_chunk_1R1", "GH", "GGCNNNC"),
    ]


def test_frames_with_a_stop_are_dropped(tmp_path: Path) -> None:
    # F1 ATG TAA; F2 TGT = C; F3 GTA = V; reverse TTACAT: R1 TTA CAT = LH; R2 TAC = Y; R3 ACA = T.
    found = translated(tmp_path, ">c\nATGTAA\n", 500)
    assert [(name, protein) for name, protein, _ in found] == [
        ("c_chunk_1F2", "C"),
        ("c_chunk_1F3", "V"),
        ("c_chunk_1R1", "LH"),
        ("c_chunk_1R2", "Y"),
        ("c_chunk_1R3", "T"),
    ]


def test_contigs_shorter_than_a_codon_have_no_protein(tmp_path: Path) -> None:
    found = translated(tmp_path, ">a\nA\n>b\nAC\n>c\nATG\n", 500)
    assert [name for name, _, _ in found] == ["c_chunk_1F1", "c_chunk_1R1"]
    with pytest.raises(UserError, match="no window of 500 bases has a frame without stop codon"):
        translated(tmp_path / "x", ">a\nA\n", 500)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["in.fna"]


@settings(max_examples=150)
@given(
    contigs=st.lists(
        st.text("ACGTacgtNRYSWKMBDHVUX-", min_size=1, max_size=90).filter(lambda s: s.strip("-")),
        min_size=1,
        max_size=6,
    ),
    window=st.integers(3, 40),
    block=st.integers(1, 200),
)
def test_equal_to_the_plain_statement(
    tmp_path_factory: pytest.TempPathFactory, contigs: list[str], window: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("translation")
    wanted = [frame for i, bases in enumerate(contigs) for frame in plain_frames(f"c{i}", bases, window)]
    text = "".join(f">c{i}\n{bases}\n" for i, bases in enumerate(contigs))
    before, translation.BLOCK = translation.BLOCK, block
    try:
        if wanted:
            assert translated(folder, text, window) == wanted
        else:
            with pytest.raises(UserError, match="without stop codon"):
                translated(folder, text, window)
    finally:
        translation.BLOCK = before


@pytest.mark.parametrize("window", [300, 500])
def test_contigs_of_real_size(tmp_path: Path, window: int) -> None:
    """Lengths of an assembly, one contig longer than a block, stretches of N, coding stretches without stops."""
    chance = random.Random(window)
    sense = [codon for codon, residue in CODE.items() if residue != "*"]
    contigs = []
    for length in [*(chance.randint(200, 4000) for _ in range(60)), 300_001, 299, 500, 501]:
        bases = ""
        while len(bases) < length:
            kind = chance.random()
            if kind < 0.5:
                bases += "".join(chance.choices("ACGT", k=chance.randint(50, 900)))
            elif kind < 0.95:
                bases += "".join(chance.choices(sense, k=chance.randint(100, 400)))
            else:
                bases += "N" * chance.randint(1, 300)
        contigs.append(bases[:length])
    text = "".join(f">NODE_{i}_length_{len(b)} x\n{b}\n" for i, b in enumerate(contigs))
    wanted = [f for i, b in enumerate(contigs) for f in plain_frames(f"NODE_{i}_length_{len(b)}", b, window)]
    assert len(wanted) > 300
    assert translated(tmp_path, text, window) == wanted


def test_counts_and_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").write_text(">a\nATGGCC\n>b\nAC\n>c\nAUGGCC\n")
    with caplog.at_level("INFO"):
        counts = translate_contigs([tmp_path / "in"], tmp_path / "p", tmp_path / "n", window=4)
    frames = plain_frames("a", "ATGGCC", 4) + plain_frames("c", "AUGGCC", 4)
    inputs = (hashlib.sha256((tmp_path / "in").read_bytes()).hexdigest(),)
    assert counts == translation.TranslationCounts(3, 14, 5, len(frames), 1, 0, inputs)
    assert "1 contigs have no stop-free frame" in caplog.text
    assert "1 contigs hold U" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">a\nACGT\nELV\n", r"in, line 3: 'E' in record 'a' is no nucleotide; .* set input to protein"),
        (">a\nAC1GT\n", r"in, line 2: '1' in record 'a' is no nucleotide"),
        (">a\nAAA\n>b\n\n>c\nA\n", r"in, line 3: record 'b' is empty"),
        (">a\nAAAAAA\n>b\nAAAAAA\n>a\nCCCCCC\n", r"in, line 5: the id 'a' was already used in .*in, line 1;"),
        ("ACGT\n", "not a FASTA file"),
        ("", "is empty"),
    ],
)
def test_mistakes_are_one_clear_sentence_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(UserError, match=message):
        translate_contigs([tmp_path / "in"], tmp_path / "p", tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
