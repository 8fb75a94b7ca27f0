"""Makes relative links and images of README.md absolute, for the page of the package index.

    python .ci/absolute_links.py https://github.com/OWNER/NAME REVISION

Only the release workflow runs it: the address of the repository is known there. Inside the repository links are
relative, so that they work on every branch and without a network.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
#: A link or an image. The text of a link may be an image (a badge).
LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\[\]]*\]|\[!\[[^\]]*\]\([^)]*\)\])\((?P<target>[^)\s]+)\)")


def absolute(text: str, repository: str, revision: str) -> str:
    """Return Markdown with absolute links: pages on `blob`, images on `raw`."""

    def replace(link: re.Match[str]) -> str:
        target = link["target"]
        if "://" in target or target.startswith(("#", "mailto:")):
            return link[0]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}{link['text']}({repository.rstrip('/')}/{kind}/{revision}/{target})"

    return LINK.sub(replace, text)


def main() -> int:
    """Rewrite README.md."""
    if len(sys.argv) != 3 or "://" not in sys.argv[1]:
        print(__doc__, file=sys.stderr)
        return 2
    README.write_text(absolute(README.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
