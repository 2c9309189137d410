"""The sizes of any architecture, as manifests hold them.

Needs the standard library alone, because the process that plans a run may have no more.
"""

from __future__ import annotations

from virnucpro.models.esm2.sizes import Architecture

AnySizes = Architecture
"""A union of every family's sizes, which their entry ``family`` tells apart; so far there is one."""
