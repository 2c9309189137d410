"""The one exception that a user's mistake or a machine's bad luck ends in."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can fix: one sentence that says what happened, where, and the way out.

    Programs at the edge (scripts, command line) print the sentence alone and end with exit
    code 1; every other exception is a defect of ours and keeps its traceback.
    """
