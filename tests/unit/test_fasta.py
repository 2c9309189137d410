"""Every FASTA that people have is read rightly; what is no FASTA is one clear sentence; nothing is lost in silence."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from virnucpro.base.errors import UserError
from virnucpro.sequences import files
from virnucpro.sequences.fasta import RESIDUES, read_fasta, read_raw

Plain = tuple[str, bytes, int, int]
OTHER_FILES = (*files._PACKED, *files._OTHER_KINDS)
LETTERS = str.maketrans("0123456789", "MKVLAGTWYS")


class Refused(Exception):
    """What the plain statement says of a file that is not to be accepted; ``line`` where it is one line's fault."""

    def __init__(self, line: int | None = None) -> None:
        self.line = line


def plain_read(data: bytes) -> list[Plain]:
    """The rules of the documentation, line by line: (id, residues, replaced, header's line)."""
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    found: list[tuple[bytes, int, list[tuple[int, bytes]]]] = []
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", data), start=1):
        if line.startswith(b">"):
            found.append((line[1:], number, []))
        elif line.startswith(b";"):
            continue
        elif found:
            found[-1][2].append((number, line))
        elif line.strip(b" \t\x0b\x0c"):
            raise Refused(number)
    if not found:
        raise Refused
    return [plain_record(*record) for record in found]


def plain_record(header: bytes, number: int, lines: list[tuple[int, bytes]]) -> Plain:
    words = re.findall(rb"[^ \t\x0b\x0c]+", header)
    if not words or any(byte < 32 or byte == 127 for byte in words[0]):
        raise Refused(number)
    residues = b""
    for place, line in lines:
        kept = bytes(byte for byte in line if byte not in b" \t\x0b\x0c").upper()
        if any(chr(byte) not in RESIDUES + "J*" for byte in kept):
            raise Refused(place)
        residues += kept
    if residues.endswith(b"*"):
        residues = residues[:-1]
    if not residues:
        raise Refused(number)
    replaced = sum(byte in b"J*" for byte in residues)
    try:
        name = words[0].decode("utf-8")
    except UnicodeDecodeError:
        name = words[0].decode("latin-1")
    return name, residues.replace(b"J", b"X").replace(b"*", b"X"), replaced, number


def read_bytes(path: Path, data: bytes) -> list[Plain]:
    path.write_bytes(data)
    return [record[:4] for record in read_fasta(path)]


CASES = {
    "Unix": b">a\nMKV\n>b\nLL\n",
    "Windows line ends": b">a\r\nMKV\r\n>b\r\nLL\r\n",
    "old Mac line ends": b">a\rMKV\r>b\rLL\r",
    "mixed line ends": b">a\r\nMKV\n>b\rLL",
    "no last line end": b">a\nMKV\n>b\nLL",
    "empty lines everywhere": b"\n\n>a\n\nMK\n\nV\n\n\n>b\n\nLL\n\n",
    "wrapped": b">a\nM\nK\nV\n>b\nL\nL\n",
    "blanks in lines": b">a\n  MK\tV \n>b\nL L\n",
    "lower case": b">a\nmkv\n>b\nlL\n",
    "a star at the end": b">a\nMKV*\n>b\nLL\n*\n",
    "comments": b"; made by hand\n>a\n;about a\nMK\n;more\nV\n>b\nLL\n; the end",
    "a byte order mark": b"\xef\xbb\xbf>a\nMKV\n>b\nLL\n",
    "descriptions": b">a some > protein; really\nMKV\n>b\tmore\nLL\n",
    "spaces before the id": b">  a x\nMKV\n> b\nLL\n",
}


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "xz padded": lambda data: lzma.compress(data) + bytes(8),
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_the_same_two_proteins_in_every_dress(tmp_path: Path, data: bytes, pack: Callable[[bytes], bytes]) -> None:
    found = read_bytes(tmp_path / "x", pack(data))
    assert [record[:3] for record in found] == [("a", b"MKV", 0), ("b", b"LL", 0)]
    assert found == plain_read(data)


@pytest.mark.parametrize(
    "name",
    [
        "sp|P12345|A_B",
        "a/b//c",
        "é",
        "Ω-1",
        "%2F",
        "a;b",
        ">x",
        "a\u00a0b",
        "tr|Q|x.1:c(12..15)[+]",
        "名前",
        "'\"\\",
        "x" * 5000,
    ],
)
def test_ids_are_kept_verbatim(tmp_path: Path, name: str) -> None:
    assert [record[0] for record in read_bytes(tmp_path / "x", f">{name} words\nMK\n".encode())] == [name]


def test_an_id_that_is_not_utf8_is_read_as_latin1(tmp_path: Path) -> None:
    assert [record[0] for record in read_bytes(tmp_path / "x", b">prot\xe9ine\nMK\n")] == ["protéine"]


def test_letters_without_a_token_become_x_and_are_counted(tmp_path: Path) -> None:
    assert read_bytes(tmp_path / "x", b">a\nMJ*kj\nV**\n>b\nXBUZO.-\n>c\n**\n") == [
        ("a", b"MXXKXVX", 4, 1),
        ("b", b"XBUZO.-", 0, 4),
        ("c", b"X", 1, 6),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_several_members_as_cat_bgzip_and_parallel_packers_make_them(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    data = b"".join(pack(part) for part in (b">a\nMK", b"V\n>", b"b\nLL", b""))
    assert [record[:2] for record in read_bytes(tmp_path / "x", data)] == [("a", b"MKV"), ("b", b"LL")]


def test_many_blocks_give_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(b">p%d d\r\n%s\r\n" % (i, b"MKVL" * (i % 50 + 1)) for i in range(3000))
    whole = read_bytes(tmp_path / "x", data)
    assert len(whole) == 3000
    monkeypatch.setattr(files, "BLOCK", 1000)
    assert read_bytes(tmp_path / "x", data) == whole == plain_read(data)


MISTAKES = {
    "digit": (b">a\nMKV\n>b\nLL\n;c\nL1L\n", r"x, line 6: '1' in record 'b' is no residue; "),
    "lost line end": (b">a\nMKV>b\nLL\n", r"x, line 2: '>' in record 'a' stands inside a line"),
    "letters beyond ASCII": (">a\nMKÉ\n".encode(), r"x, line 2: byte 0xc3 in record 'a' is no residue"),
    "NUL": (b">a\nMK\0\n", r"x, line 2: byte 0x00 in record 'a' is no residue"),
    "empty record": (b">a\nMK\n>b\n>c\nLL\n", r"x, line 3: record 'b' is empty; "),
    "empty last record": (b">a\nMK\n>b", r"x, line 3: record 'b' is empty"),
    "star alone": (b">a\n*\n", r"x, line 1: record 'a' is empty"),
    "no id": (b">a\nMK\n>  \nLL\n", r"x, line 3: a header without an id"),
    "control characters in an id": (b">a\x1bb\nMK\n", r"x, line 1: the id 'a\\x1bb' holds control characters"),
    "empty file": (b"", r"x is empty: no FASTA record in it"),
    "blank file": (b"\n \n\n", r"x is empty"),
    "comments alone": (b"; nothing here\n", r"x is empty"),
    "text": (b"\nHello world\n>a\nMK\n", r"x, line 2: b'Hello world' stands before the first line .* not a FASTA file"),
    "sequence before the header": (b"MKV\n>a\nMK\n", r"x, line 1: b'MKV' stands before"),
    "FASTQ": (b"@r1\nACGT\n+\nIIII\n", r"x, line 1: b'@r1' stands before"),
    "bytes": (bytes(range(256)) * 50, r"not a FASTA file"),
    "ELF": (b"\x7fELF\x02\x01\x01" + bytes(900), r"not a FASTA file"),
    "bzip2 with only a start": (b"BZh91AY&SY", r"x is cut short"),
    "xz with only a start": (b"\xfd7zXZ\0\0", r"x is cut short"),
    "bzip2 and then garbage": (bz2.compress(b">a\nMK\n") + b"garbage", r"x is damaged: its (bzip2|xz) data"),
    "xz and then garbage": (lzma.compress(b">a\nMK\n") + b"garbage", r"x is damaged: its (bzip2|xz) data"),
    "bzip2, its second stream damaged": (bz2.compress(b">a\nMK\n") + bz2.compress(b">b\nMK\n")[:-4], r"x is cut short"),
    "a web page": (b">a\nMKV\n<html><body>Error 502</body></html>\n", r"x, line 3: '<' .* a web page .* download it"),
    "an error in numbers": (b">a\nMKV\nError: 502\n", r"x, line 3: ':' in record 'a' is no residue"),
    "JSON": (b'{"error": "gone"}\n', r"not a FASTA file"),
    "zip": (b"PK\x03\x04rest", r"x is a zip archive"),
    "UTF-16": (">a\nMK\n".encode("utf-16"), r"x is UTF-16 text: save it as plain text"),
    "gzip cut short": (gzip.compress(b">a\n" + os.urandom(5000).hex().encode())[:-2000], r"x is cut short"),
    "gzip with only a start": (b"\x1f\x8b\x08", r"x is cut short"),
    "gzip of nothing": (gzip.compress(b""), r"x is empty"),
    "gzip and then garbage": (gzip.compress(b">a\nMK\n") + b"garbage", r"x is damaged: its gzip data"),
}


@pytest.mark.parametrize(("data", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_clear_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_bytes(tmp_path / "x", data)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(files._zstd() is None, reason="needs Python 3.14 or backports.zstd")
def test_zstd_in_several_frames_cut_short_and_damaged(tmp_path: Path) -> None:
    pack = files._zstd().compress
    data = pack(b">a\nMK") + pack(b"V\n>b\nLL\n")
    assert [record[:2] for record in read_bytes(tmp_path / "x", data)] == [("a", b"MKV"), ("b", b"LL")]
    with pytest.raises(UserError, match="x is cut short"):
        read_bytes(tmp_path / "x", data[:-3])
    with pytest.raises(UserError, match="x is damaged"):
        read_bytes(tmp_path / "x", data + b"garbage")


def test_zstd_without_its_module_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_zstd", lambda: None)
    with pytest.raises(UserError, match=r"`pip install backports\.zstd`, or unpack it with `unzstd`"):
        read_bytes(tmp_path / "x", b"\x28\xb5\x2f\xfd0")


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_the_digest_is_of_the_bytes_that_were_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = pack(b"".join(b">p%d\n%s\n" % (i, os.urandom(20).hex().translate(LETTERS).encode()) for i in range(9000)))
    path = tmp_path / "x"
    path.write_bytes(data)
    file = files.SequenceFile(path)
    reading = read_raw(file)
    next(reading)
    assert file.sha256 == ""  # a reading that is not at its end has no digest
    for _ in reading:
        pass
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.read == file.size == len(data)


def test_one_long_record_takes_about_twice_its_size(tmp_path: Path) -> None:
    """On one line, as scaffolds and concatenated proteins come."""
    size = 64 << 20
    path = tmp_path / "x"
    path.write_bytes(b">a\n" + b"MKVLAGTW" * (size // 8))
    tracemalloc.start()
    (record,) = read_fasta(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(record.sequence) == size
    assert peak < 2.2 * size


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_flipped_bit_in_packed_data_is_found(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(b"".join(b">p%d\n%s\n" % (i, b"MKVL" * 30) for i in range(500))))
    packed[len(packed) // 2] ^= 8
    with pytest.raises(UserError, match="x "):
        read_bytes(tmp_path / "x", bytes(packed))


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        list(read_fasta(path))

    with pytest.raises(UserError, match="missing: there is no such file"):
        read(tmp_path / "missing")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link: there is no such file"):
        read(tmp_path / "link")
    with pytest.raises(UserError, match="is a folder; give the FASTA files in it"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read"):
        read(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX only")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(">a\nMK\n")
    path.chmod(0)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65534)  # the superuser may read everything
        with pytest.raises(UserError, match="x cannot be read: Permission denied"):
            list(read_fasta(path))
    finally:
        os.seteuid(before)


def agrees(path: Path, data: bytes) -> None:
    """read_fasta gives what the plain statement gives, or both refuse, and name the same line."""
    try:
        wanted: list[Plain] | Refused = plain_read(data)
    except Refused as refused:
        wanted = refused
    path.write_bytes(data)
    records: Iterator[Plain] = (record[:4] for record in read_fasta(path))
    if not isinstance(wanted, Refused):
        assert list(records) == wanted
        return
    with pytest.raises(UserError) as caught:
        list(records)
    if wanted.line is not None:
        assert f"x, line {wanted.line}: " in str(caught.value)


PIECES = st.sampled_from(
    [
        b">",
        b"\n",
        b"\r\n",
        b"\r",
        b";",
        b"*",
        b" ",
        b"\t",
        b"\n>",
        b"\n;",
        b"MKV",
        b"jx",
        b"-.",
        b"1",
        b"id",
        b"\xe9",
        "é".encode(),
    ]
)
HEADERS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
RECORDS = st.lists(
    st.tuples(HEADERS, st.lists(st.text(RESIDUES + "J*" + RESIDUES.lower() + " ", max_size=9))), max_size=8
)


@settings(max_examples=600, deadline=None)
@given(data=st.lists(PIECES, max_size=40).map(b"".join), block=st.sampled_from([1, 2, 3, 7, 64, 1 << 20]))
@example(data=b">a\r\nM\r", block=1)
@example(data=b">a\n;>b\n\n;\nM", block=2)
def test_fuzz_pieces_of_fasta(tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int) -> None:
    before, files.BLOCK = files.BLOCK, block
    try:
        agrees(tmp_path_factory.mktemp("fuzz") / "x", data)
    finally:
        files.BLOCK = before


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b">", b">a\nMK\n", b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]))
@example(data=b"7z\xbc\xaf'\x1c", start=b"")
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    if (start + data).startswith(OTHER_FILES):
        path.write_bytes(start + data)
        with pytest.raises(UserError):
            list(read_fasta(path))
    else:
        agrees(path, start + data)


@settings(max_examples=300, deadline=None)
@given(records=RECORDS, end=st.sampled_from(["\n", "\r\n", "\r"]), packed=st.booleans())
def test_odd_headers_and_residues(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, list[str]]], end: str, packed: bool
) -> None:
    text = "".join(f">{header}{end}" + "".join(f"{line}{end}" for line in lines) for header, lines in records)
    path = tmp_path_factory.mktemp("fuzz") / "x"
    if packed:
        path.write_bytes(gzip.compress(text.encode()))
        try:
            wanted = plain_read(text.encode())
        except Refused:
            with pytest.raises(UserError):
                list(read_fasta(path))
        else:
            assert [record[:4] for record in read_fasta(path)] == wanted
    else:
        agrees(path, text.encode())
