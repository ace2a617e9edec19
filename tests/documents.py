"""What the documents of this repository say, as data: their commands, programs, links and words."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Link(NamedTuple):
    """A link from one document to something else."""

    document: Path
    target: str

    def __str__(self) -> str:
        return f"{name_of(self.document)} links to {self.target}"


def name_of(document: Path) -> str:
    """The path of a document from the root of the repository."""
    return str(document.relative_to(ROOT))


def fenced(language: str) -> list[str]:
    """The blocks of a language in all documents, in order, each text once."""
    blocks = [
        block
        for document in DOCUMENTS
        for found, block in _FENCE.findall(document.read_text())
        if found == language
    ]
    return list(dict.fromkeys(blocks))


def commands() -> list[str]:
    """The commands of all documents, in order, each once."""
    lines = [line for block in fenced("sh") for line in block.splitlines() if line]
    return list(dict.fromkeys(lines))


def spans(document: Path) -> list[str]:
    """What a document's prose sets as code, whole."""
    return _CODE.findall(prose(document))


def named_commands(*programs: str) -> list[str]:
    """The commands that the prose of today's documents sets as code, with these programs first.

    Each once, in order. A record of the past may name what is gone: the changelog, a decision.
    """
    of_today = [
        document
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md" and document.parent.name != "decisions"
    ]
    found = [
        span
        for document in of_today
        for span in spans(document)
        if span.split()[:1] and span.split()[0] in programs
    ]
    return list(dict.fromkeys(found))


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return _FENCE.sub("", document.read_text())


def code_words(document: Path) -> list[str]:
    """The words of what a document's prose sets as code."""
    return [word for code in spans(document) for word in re.split(r"[\s,]+", code)]


def links() -> list[Link]:
    """The links of all documents, those to other sites included."""
    return [
        Link(document, target)
        for document in DOCUMENTS
        for target in _LINK.findall(_CODE.sub("", prose(document)))
    ]


def anchors(document: Path) -> set[str]:
    """What a link may name after `#` in a document."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(prose(document))
    }
