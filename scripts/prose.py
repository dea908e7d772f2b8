"""Finds phrases that CONTRIBUTING.md asks writers to avoid, in comments, docstrings, texts and documentation.

    python scripts/prose.py [PATH ...]

Prints each hit with what to write instead; the exit status is 1 if there is one. PATH limits the check to files and
folders.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: What to avoid, as a regular expression, and what to write instead.
PHRASES = {
    r"anew": "again; is recreated; restarts",
    r"as ever": "as before; unchanged",
    r"at all": "leave it out",
    r"away with it": "delete; purge",
    r"bears? no": "has no",
    r"beside": "alongside; in addition to",
    r"be gone on with": "be resumed",
    r"(can ?not|not to) be had|to be had": "is unavailable",
    r"(come|comes|came|coming) to pass": "be executed; take effect",
    r"(do|does) not fit": "is invalid",
    r"for ever|for good": "forever; permanently; indefinitely",
    r"for want of": "because there is no",
    r"gets? on": "the status of",
    r"has \w+ in its hands": "holds",
    r"in vain": "without effect",
    r"(is|are) (?-i:none)": "there is no; none exists",
    r"is no (event|name|reason|time|worker)": "is not a valid",
    r"lets? in": "accept",
    r"(?<!dead )(?<!dead-)letters?": "dead letter",
    r"likewise": "also; for the same reason",
    r"looks? (after|whether)": "check",
    r"ma[dk]e room": "is evicted",
    r"mend(s|ed|ing)?": "fix",
    r"of (its|their) own": "its own; separate",
    r"on purpose": "intentionally",
    r"once more": "again; replay; retry",
    r"rights": "permissions",
    r"said no": "returned false; refused",
    r"see(s|n)? to": "ensure; handle",
    r"strangers?": "untrusted or external publishers",
    r"the journal keeps": "the events stay in the journal",
    r"tr(y|ies) on": "keeps retrying",
    r"whatever dies": "even if a process crashes",
    r"who (only )?may": "who can",
    r"whoever": "anyone who",
    r"without a word": "silently; without notice",
    r"worked off": "processed; drained",
    r"would be a lie": "would be wrong",
}
_ANY = re.compile(
    r"\b(?:" + "|".join(f"(?P<p{at}>{phrase})" for at, phrase in enumerate(PHRASES)) + r")\b", re.IGNORECASE
)
#: Texts that are checked whole; of Python only comments and strings are.
_SUFFIXES = {".md", ".lua", ".html", ".yml", ".yaml", ".toml", ".conf", ".sh"}
#: This list itself.
_SKIPPED = {"scripts/prose.py"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of *path* that people read, with their numbers."""
    code = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(code.splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])


def hits(path: Path) -> Iterator[str]:
    """Yield one line for each phrase in *path*."""
    for number, text in texts(path):
        for found in _ANY.finditer(text):
            instead = list(PHRASES.values())[int(str(found.lastgroup)[1:])]
            yield f"{path.relative_to(ROOT)}:{number}: {found[0]!r}; write: {instead}"


def main(paths: list[str]) -> int:
    """Check all files that are under version control, or those below *paths*."""
    command = ["git", "ls-files", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    names = [name for name in listed if name not in _SKIPPED and Path(name).suffix in {".py", *_SUFFIXES}]
    found = [hit for name in names if (ROOT / name).exists() for hit in hits(ROOT / name)]
    print("\n".join(found) or f"no listed phrase in {len(names)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
