"""What is surely no protein is refused; what can't simply be embedded is treated as was asked for, and listed."""

from __future__ import annotations

import csv
import hashlib
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.splitting import split_proteins
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies
from virnucpro.chunking.index import read_index
from virnucpro.chunking.size import chunk_count
from virnucpro.chunking.split import SplitCounts
from virnucpro.sequences.fasta import estimate, read_fasta
from virnucpro.sequences.intake import PROTEINS, SKIPPED_COLUMNS, Intake
from virnucpro.sequences.translation import CONTIGS, translate_contigs

EXAMPLES = Path(__file__).parents[2] / "examples"

SWISS_PROT = {
    "A": 8.25, "R": 5.52, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.71, "G": 7.07, "H": 2.27, "I": 5.91,
    "L": 9.64, "K": 5.79, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65, "T": 5.36, "W": 1.10, "Y": 2.92, "V": 6.85,
}  # fmt: skip
"""Per cent of residues (release statistics of UniProtKB/Swiss-Prot)."""

REAL = "MEVNKKQLADIFGASIRTIQNWQEQGMPVLRGGGKGNEVLYDSAAVIKWYAERDAEIENEKLRREVEELRQASEADLQPGTIEYERHRLTRAQADAQELK"


def split(folder: Path, text: str | bytes, **policies: str) -> SplitCounts:
    path = folder / "in.faa"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    options: dict[str, Any] = {"chunk_residues": 100, "policies": InputPolicies(**policies)}
    return split_proteins([path], folder / "index", folder / "chunks", folder / "skipped.tsv", **options)


def ids(folder: Path) -> list[str]:
    return [name for rows in read_index(folder / "index") for name in rows.ids]


def skipped(folder: Path, name: str = "skipped.tsv") -> list[tuple[str, int, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(row["file"].startswith(str(folder)) for row in rows)
    return [(row["id"], int(row["line"]), row["reason"]) for row in rows]


def bases(n: int, letters: str = "ACGT", seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(letters, k=n))


GOOD = f">good\n{REAL}\n"

SURELY_WRONG = {
    "a contig": (GOOD + f">c\n{bases(500)}\n", r"in.faa, line 3: record 'c' is DNA or RNA \(500 letters"),
    "one short read": (f">c\n{bases(40)}\n", r"record 'c' is DNA or RNA .* set input to nucleotide"),
    "RNA in lower case": (f">c\n{bases(90, 'acgu')}\n", r"record 'c' is DNA or RNA"),
    "a contig with IUPAC codes": (f">c\n{bases(300)}RYSWKM\n", r"\(306 letters, 300 of them A, C, G, T, U or N\)"),
    "a contig of a genome rich in A and T": (f">c\n{bases(900, 'AAAAATTTTTCG')}\n", r"is DNA or RNA"),
    "a contig mostly N": (f">c\n{'N' * 200}{bases(200)}\n", r"is DNA or RNA"),
    "primers": ("".join(f">p{i}\n{bases(20, seed=i)}\n" for i in range(9)), r"in.faa holds DNA or RNA"),
    "what BioMart writes": (GOOD + ">b\nSequence unavailable\n", r"line 3: record 'b' holds words, no residues \('Seq"),
    "alone": (">b\nSequence unavailable\n", r"holds words"),
    "a server's error": (GOOD + "Internal Server Error\n", r"record 'good' holds words, .*'Internal Server Error'"),
    "in capitals": (GOOD + "SERVICE TEMPORARILY UNAVAILABLE\n", r"holds words"),
    "another": (GOOD + "Please try again later.\n", r"holds words"),
    "a shell's word": (GOOD + "Killed\n", r"record 'good' holds words, no residues \('Killed'\)"),
    "a crash": (GOOD + "Segmentation fault\n", r"holds words"),
    "a pipe": (GOOD + "Broken pipe\n", r"holds words"),
    "in a file in lower case": (GOOD.lower() + "too many requests\n", r"holds words"),
    "None": (GOOD + ">n\nNone\n", r"record 'n' holds words, no residues \('None'\)"),
    "nan": (GOOD + ">n\nNaN\n", r"holds words"),
    "aligned": (
        f">a\n{REAL[:40]}-----{REAL[40:]}\n>b\n{REAL[:40]}AAAAA{REAL[40:]}\n",
        r"in.faa is an alignment \(2 rec",
    ),
    "aligned with many gaps": (f">a\n{REAL[:20]}{'-' * 30}{REAL[20:]}\n", r"comes out of an alignment \(30 of its 130"),
    "with dots": (f">a\n{REAL[:20]}{'.' * 30}{REAL[20:]}\n", r"comes out of an alignment \(30 of its 130"),
    "a3m": (
        f">q\n{REAL}\n>h\n{REAL[:50]}aag{REAL[50:98]}--\n>i\n{REAL[:99]}-\n",
        r"is an alignment \(3 records of 100",
    ),
}


@pytest.mark.parametrize(("text", "message"), SURELY_WRONG.values(), ids=SURELY_WRONG.keys())
def test_what_is_surely_no_protein_is_refused_unless_someone_insists(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split(tmp_path, text)
    assert "set suspicious to accept" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.faa"]
    assert split(tmp_path, text, suspicious="accept").records == text.count(">")
    assert len(list(read_fasta(tmp_path / "in.faa"))) == text.count(">")


MAY_BE_RIGHT = {
    "one short peptide": ">p\nGATTACA\n",
    "a few": ">p\nGATTACA\n>q\nCATGTAG\n>r\nTAGACAT\n",
    "poly-alanine": f">p\n{'A' * 60}\n",
    "poly-glycine and poly-asparagine": f">p\n{'G' * 80}\n>q\n{'N' * 300}\n",
    "antifreeze glycoprotein": f">p\n{'AAT' * 60}\n",
    "silk": f">p\n{'GAGAGS' * 60}\n>q\n{'GA' * 90}\n",
    "beetle antifreeze protein": ">p\n"
    "QCTGGADCTSCTGACTGCGNCPNAVTCTNSQHCVKANTCTGSTDCNTAQTCTNSKDCFEANTCTDSTNCYKATACTNSSGCPGH\n",
    "keratin-associated protein": ">p\n"
    "MTCCQTSFCGFPSCSTSGTCGSSCCQPSCCETSCCQPSCCQTSFCGFPSFSTSGTCSSSCCQPSCCETSCCQPSCCQTSSCGTG\n",
    "soft-masked": f">p\n{REAL[:60]}\n{REAL[60:70]}aaaaagggg\n>q\n{REAL[:60]}\n{REAL[60]}kkkkkk\n",
    "in lower case": f">p\n{REAL.lower()}\n>q\n{REAL.lower()[::-1]}\n",
    "in blocks of ten": ">p\n" + " ".join(REAL[i : i + 10] for i in range(0, 95, 10)) + f"\n>q\n{REAL[:47]}\n",
    "in blocks, lower case": ">p\n" + " ".join(REAL[i : i + 10] for i in range(0, 95, 10)).lower() + f"\n{REAL[:8]}\n",
    "a blank in a line": f">p\n{REAL}\n>q\n{REAL[:30]} {REAL[30:]}\n",
    "blanks and lower case, short": ">p\nA\n>q\nA Aj\n>r\nMK vl LAV\n",
    "blanks at ends of lines": f">p\n{REAL} \n{REAL}\t\n",
    "one gap": f">p\n{REAL[:30]}-{REAL[30:]}\n>q\n{REAL}\n",
    "a gap in a short peptide": ">p\nMK-V\n>q\nMKLV\n",
    "unknown residues": f">p\n{'X' * 50}\n>q\n{REAL}{'X' * 30}\n",
    "peptides of one length": ">p\nMKVLAAGIV\n>q\nACDEFGHIK\n",
    "words that are residues": ">p\nMKV\nDENIED\n>q\nKILLED\n",
}


@pytest.mark.parametrize("text", MAY_BE_RIGHT.values(), ids=MAY_BE_RIGHT.keys())
def test_what_may_be_right_is_read(tmp_path: Path, text: str) -> None:
    assert split(tmp_path, text).records == text.count(">")


def test_what_may_be_right_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f">p\n{REAL[:30]}-{REAL[30:]}\n>q\n{REAL}.\n>r\n{'X' * 60}{REAL[:50]}\n>s\n{'X' * 50}{REAL[:50]}\n"
    with caplog.at_level(logging.WARNING):
        counts = split(tmp_path, text)
    assert (counts.gapped, counts.unknown) == (2, 1)
    assert "2 records hold gaps" in caplog.text
    assert "1 records are mostly X" in caplog.text


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    width=st.sampled_from([10, 60, 80, 10_000]),
    lower=st.booleans(),
    star=st.booleans(),
)
@example(seed=1, lengths=[60] * 40, width=60, lower=False, star=True)
def test_no_protein_of_usual_composition_is_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lengths: list[int], width: int, lower: bool, star: bool
) -> None:
    chance = random.Random(seed)
    lines = []
    for number, length in enumerate(lengths):
        residues = "".join(chance.choices(list(SWISS_PROT), list(SWISS_PROT.values()), k=length)) + "*" * star
        residues = residues.lower() if lower else residues
        lines += [f">p{number} some words", *(residues[i : i + width] for i in range(0, len(residues), width))]
    path = tmp_path_factory.mktemp("usual") / "in.faa"
    path.write_text("\n".join(lines))
    assert sum(1 for _ in Intake([path], PROTEINS, InputPolicies()).first_reading()) == len(lengths)


def test_the_examples_are_taken(tmp_path: Path) -> None:
    intake = Intake([EXAMPLES / "viral_proteins.faa"], PROTEINS, InputPolicies())
    assert sum(1 for _ in intake.first_reading()) == 70
    assert intake.digests == [hashlib.sha256((EXAMPLES / "viral_proteins.faa").read_bytes()).hexdigest()]
    assert sum(1 for _ in Intake([EXAMPLES / "viral_contigs.fna"], CONTIGS, InputPolicies()).first_reading()) == 8
    with pytest.raises(UserError, match=r"line 1: record .* is DNA or RNA"):
        list(Intake([EXAMPLES / "viral_contigs.fna"], PROTEINS, InputPolicies()).first_reading())


# Empty records


NO_RESIDUES = {"nothing": "", "blank lines": "\n \n", "a star": "*\n", "gaps": "--..--\n", "gaps and a star": "---*\n"}


@pytest.mark.parametrize("body", NO_RESIDUES.values(), ids=NO_RESIDUES.keys())
def test_records_without_residues(tmp_path: Path, body: str) -> None:
    text = f">a\nMKV\n>b x\n{body}>c\nMLL\n"
    with pytest.raises(UserError, match=r"in.faa, line 3: record 'b' is empty; .* or set empty_records to skip"):
        split(tmp_path, text)
    counts = split(tmp_path, text, empty_records="skip")
    assert (counts.records, counts.skipped) == (2, 1)
    assert ids(tmp_path) == ["a", "c"]
    assert skipped(tmp_path) == [("b", 3, "no residues")]


def test_the_table_of_what_was_skipped_is_always_there(tmp_path: Path) -> None:
    assert split(tmp_path, GOOD).skipped == 0
    assert (tmp_path / "skipped.tsv").read_text() == "\t".join(SKIPPED_COLUMNS) + "\n"
    (tmp_path / "skipped.tsv").unlink()
    split_proteins([tmp_path / "in.faa"], tmp_path / "index", tmp_path / "chunks", chunk_residues=9)
    assert (tmp_path / "skipped.tsv").exists()


# Repeated ids

REPEATS = ">a one\nMKV\n>b\nMLL\n>a two\nMKI\n>a_2\nMFF\n>c\n*\n>a one\nMKV\n>c\nMY\n"


@pytest.mark.parametrize(
    ("policy", "wanted", "listed"),
    [
        ("skip", ["a", "b", "a_2", "c"], [("a", 5), ("c", 9), ("a", 11)]),
        ("number", ["a", "b", "a_3", "a_2", "a_4", "c"], [("c", 9)]),
    ],
)
def test_repeated_ids(tmp_path: Path, policy: str, wanted: list[str], listed: list[tuple[str, int]]) -> None:
    counts = split(tmp_path, REPEATS, duplicate_ids=policy, empty_records="skip")
    assert ids(tmp_path) == wanted
    assert [row[:2] for row in skipped(tmp_path)] == listed
    assert (counts.records, counts.skipped) == (len(wanted), len(listed))
    assert len({row[2] for row in skipped(tmp_path)}) == (2 if policy == "skip" else 1)


def test_the_whole_header_as_id(tmp_path: Path) -> None:
    text = ">a  one\tx\nMKV\n>a two\nMKI\n>b\nMK\n"
    split(tmp_path, text, duplicate_ids="header")
    assert ids(tmp_path) == ["a one x", "a two", "b"]
    with pytest.raises(UserError, match=r"line 7: the id 'a two' was already used in .*line 3; .* to skip or number$"):
        split(tmp_path, text + ">a two\nMKK\n", duplicate_ids="header")


def test_repeats_are_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 5: the id 'a' .* line 1 \(2 records .*set duplicate_ids to skip"):
        split(tmp_path, REPEATS, empty_records="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["in.faa"]


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.sampled_from(["a", "a_2", "a_2_2", "a_3", "b", "b_2", "é|_2"]), min_size=1, max_size=30))
def test_numbered_ids_are_unique_and_first_ones_stay(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("numbered")
    split(folder, "".join(f">{name}\nMK\n" for name in names), duplicate_ids="number")
    found = ids(folder)
    assert len(set(found)) == len(names)
    for place, name in enumerate(names):
        assert found[place] == name if name not in names[:place] else found[place].startswith(f"{name}_")


# Empty samples


@pytest.mark.parametrize("text", ["", "\n\n", "; a comment\n", "\ufeff"])
def test_a_sample_without_records(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"in.faa is empty: .* or set empty_samples to skip"):
        split(tmp_path, text)
    with caplog.at_level(logging.WARNING):
        assert split(tmp_path, text, empty_samples="skip") == SplitCounts(0, 0, 0, 0, 0, 0, 0, 0)
    assert "no protein in this sample" in caplog.text
    assert ids(tmp_path) == []
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == ["split.json"]
    assert skipped(tmp_path) == []


def test_a_sample_of_which_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record has a sequence; .* or set empty_samples to skip"):
        split(tmp_path, ">a\n>b\n*\n", empty_records="skip")
    counts = split(tmp_path, ">a\n>b\n*\n", empty_records="skip", empty_samples="skip")
    assert (counts.records, counts.skipped, counts.chunks) == (0, 2, 0)
    assert skipped(tmp_path) == [("a", 1, "no residues"), ("b", 2, "no residues")]


# The same for contigs


def translate(folder: Path, text: str, **policies: str) -> tuple[Any, list[str], list[tuple[str, int, str]]]:
    path = folder / "in.fna"
    path.write_text(text)
    faa, fna = folder / "out.faa", folder / "out.fna"
    counts = translate_contigs([path], faa, fna, window=300, policies=InputPolicies(**policies))
    names = [line for line in faa.read_text().splitlines() if line.startswith(">")]
    assert [line for line in fna.read_text().splitlines() if line.startswith(">")] == names
    return counts, names, skipped(folder, "skipped_contigs.tsv")


def test_contigs(tmp_path: Path) -> None:
    text = ">a x\nATGGCC\n>e\n\n>s\nAT\n>a y\nATGGCCATG\n>b\nATGGCC\n"
    with pytest.raises(UserError, match=r"in.fna, line 3: record 'e' is empty"):
        translate(tmp_path, text)
    with pytest.raises(UserError, match=r"in.fna, line 7: the id 'a' was already used"):
        translate(tmp_path, text, empty_records="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["in.fna"]
    for policy, contigs in {"skip": ["a", "b"], "number": ["a", "a_2", "b"], "header": ["a_x", "a_y", "b"]}.items():
        counts, names, rows = translate(tmp_path, text, empty_records="skip", duplicate_ids=policy)
        assert list(dict.fromkeys(name.rsplit("_chunk_", 1)[0] for name in names)) == [f">{name}" for name in contigs]
        assert rows[:2] == [("e", 3, "no residues"), ("s", 5, "no stop-free frame")]
        assert rows[2:] == ([("a", 7, "an earlier record has the same id")] if policy == "skip" else [])
        assert (counts.contigs, counts.silent_contigs) == (len(contigs) + 1, 1)
        assert counts.skipped == len(rows) - 1


def test_contigs_without_any_frame(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="frame without stop codon; give DNA, or set empty_samples to skip"):
        translate(tmp_path, ">a\nAT\n")
    counts, names, rows = translate(tmp_path, ">a\nAT\n", empty_samples="skip")
    assert (counts.proteins, names, rows) == (0, [], [("a", 1, "no stop-free frame")])
    counts, names, rows = translate(tmp_path, "", empty_samples="skip")
    assert (counts.contigs, names, rows) == (0, [], [])


def test_aligned_contigs_are_refused(tmp_path: Path) -> None:
    text = f">a\n{bases(90)}----------{bases(9)}\n>b\n{bases(109)}\n"
    with pytest.raises(UserError, match=r"in.fna is an alignment \(2 records of 109 columns"):
        translate(tmp_path, text)
    assert translate(tmp_path, text, suspicious="accept")[0].contigs == 2


# Files that change, and what is predicted


def test_a_change_that_keeps_sizes_and_dates_is_found(tmp_path: Path) -> None:
    path = tmp_path / "in.faa"
    path.write_text(GOOD)
    intake = Intake([path], PROTEINS, InputPolicies())
    list(intake.first_reading())
    path.write_text(GOOD.replace("MEV", "MEI"))
    with pytest.raises(UserError, match="changed while being read"):
        list(intake.second_reading(lambda row: None))


@settings(max_examples=50, deadline=None)
@given(
    records=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", "*", "--", "MK", "MKV*", "mkv", "M KV\n", "MJ*K"])),
        min_size=1,
        max_size=25,
    ),
    policy=st.sampled_from(["skip", "number"]),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    start=st.sampled_from(["", "\ufeff", "; a comment\n\n", "\ufeff;x\n"]),
    chunk_residues=st.integers(1, 30),
    multiple_of=st.integers(1, 9),
)
def test_the_estimate_of_a_whole_file_is_what_the_split_finds(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, str]],
    policy: str,
    ends: str,
    start: str,
    chunk_residues: int,
    multiple_of: int,
) -> None:
    folder = tmp_path_factory.mktemp("estimate")
    text = start + "".join(f">{name} w\n{body}\n;no\n" for name, body in records)
    counts = split(folder, text.replace("\n", ends), empty_records="skip", empty_samples="skip", duplicate_ids=policy)
    amount = estimate([folder / "in.faa"], skip_repeated_ids=policy == "skip")
    assert amount.exact
    found = (counts.records, counts.residues, counts.unique, counts.unique_residues)
    assert (amount.records, amount.letters, amount.unique, amount.unique_letters) == found
    if counts.records:
        planned = chunk_count(amount.unique_letters, amount.unique, chunk_residues, multiple_of)
        again = split_proteins(
            [folder / "in.faa"],
            folder / "index",
            folder / "chunks",
            chunk_residues=chunk_residues,
            multiple_of=multiple_of,
            policies=InputPolicies(empty_records="skip", duplicate_ids=policy),
        )
        assert again.chunks <= planned
