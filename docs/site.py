"""What the site changes in the pages: links to files outside of docs/ are shown as these files' paths.

On the code's own pages they lead to the files; a site has no such pages, and does not know where the code is kept.
"""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!docs/)([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``[text](../config.yaml)`` as ``text (config.yaml)``, and nothing twice."""
    depth = page.file.src_uri.count("/") + 1

    def shown(link: re.Match[str]) -> str:
        if link[0].count("../") < depth:
            return link[0]
        text, place = link[1], link[2]
        return text if text.strip("`") == place else f"{text} (`{place}`)"

    return OUTSIDE.sub(shown, markdown)
