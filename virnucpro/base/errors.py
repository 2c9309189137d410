"""The one exception that a user's mistake or a machine's bad luck ends in."""

from __future__ import annotations

from virnucpro.base.text import printable

LONGEST_SENTENCE = 4000
"""Characters; what is longer quotes something long, and loses its middle."""


class UserError(Exception):
    """Something a user can fix: one sentence that says what happened, where, and the way out.

    Programs at the edge (scripts, command line) print the sentence alone and end with exit
    code 1; every other exception is a defect of ours and keeps its traceback. Texts from files, names and servers
    may be quoted in it as they are: it is made printable here.
    """

    def __init__(self, sentence: str) -> None:
        text = printable(sentence)
        if len(text) > LONGEST_SENTENCE:
            text = f"{text[: LONGEST_SENTENCE // 2]} ... {text[-LONGEST_SENTENCE // 2 :]}"
        super().__init__(text)
