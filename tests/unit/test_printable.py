"""Texts of others reach terminal and log as one line, written out: nothing steers a terminal or forges a line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from virnucpro.base.errors import LONGEST_SENTENCE, UserError
from virnucpro.jobs import job

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n12:00:00 done\u202e\x9b1m\ud800"


def test_a_sentence_is_one_printable_line_and_keeps_its_end() -> None:
    assert str(UserError(f"no file {HOSTILE}")).isprintable()
    long = str(UserError(f"no file {'x' * 10**6}: give another"))
    assert len(long) < LONGEST_SENTENCE + 10
    assert long.startswith("no file x")
    assert long.endswith(": give another")


def test_a_log_line_stays_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the handler by which pytest captures it: xdist can't send half a surrogate pair.
    monkeypatch.setattr(logging.getLogger("virnucpro"), "handlers", [])

    def ends_badly() -> None:
        with job("try", tmp_path / "log.txt") as logger:
            logger.info("read %s", HOSTILE)
            raise UserError(f"{HOSTILE} is not right")

    with pytest.raises(SystemExit):
        ends_badly()
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert all(line.isprintable() for line in text.splitlines())
        lines = text.splitlines()
        assert [line[:4] == "    " for line in lines] == [False, True, False]
