"""A page as its parts, written twice: index.html that needs nothing else, and Markdown with its pictures beside it.

What a part says is plain text, in which `words` between backticks are code and **words** are strong; all else that
HTML or Markdown could take for a sign is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

TEMPLATES = Path(__file__).parent / "templates"
WHOLE = {"html": "index.html", "md": "report.md"}


@dataclass(frozen=True)
class Text:
    words: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Warn:
    """What the reader must not overlook."""

    words: str
    kind: ClassVar[str] = "warn"


@dataclass(frozen=True)
class Points:
    words: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Table:
    """`rows` of cells as text; the first column names the row, those from `words` on are numbers, set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A png in the page's folder; `words` say what is seen, of how many faces and how it was made."""

    path: Path
    words: str
    kind: ClassVar[str] = "picture"

    @property
    def data(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Code:
    """Commands to copy."""

    lines: Sequence[str]
    kind: ClassVar[str] = "code"


Block = Text | Warn | Points | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """`figures` are the few numbers that a reader looks for first: (what, value, range or unit)."""

    title: str
    headline: str
    sections: Sequence[Section]
    figures: Sequence[tuple[str, str, str]] = ()
    foot: str = ""
    badges: Sequence[str] = field(default=())


def write_page(page: Page, folder: Path) -> list[Path]:
    """index.html and report.md in `folder`, each whole or not at all."""
    paths = []
    for kind, name in WHOLE.items():
        part = folder / f"{name}.part"
        part.write_text(render(page, kind), encoding="utf-8")
        paths.append(part.replace(folder / name))
    return paths


def render(page: Page, kind: str) -> str:
    """The text of the page; `kind` is html or md."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=kind == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"inline": inline, "marked": marked, "cell": cell, "code": fenced}
    return environment.get_template(f"page.{kind}.j2").render(page=page)


def inline(words: str) -> Any:
    """Plain text as HTML, with its code and its strong words."""
    from markupsafe import Markup, escape

    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text))


def marked(words: str) -> str:
    """Plain text as Markdown: signs outside of code stand for themselves."""
    parts = re.split(r"(`[^`]+`)|\*\*([^*`]+)\*\*", " ".join(words.split()))
    plain, code, strong = parts[::3], parts[1::3], parts[2::3]
    found = [plain_signs(plain[0])]
    for kept, loud, rest in zip(code, strong, plain[1:], strict=True):
        found += [kept or f"**{plain_signs(loud)}**", plain_signs(rest)]
    return "".join(found)


def plain_signs(text: str) -> str:
    return re.sub(r"([\\*_`\[\]<>#|])", r"\\\1", text)


def cell(words: str) -> str:
    """Markdown that stays in its cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", marked(words)) or " "


def fenced(lines: Iterable[str]) -> str:
    """Code in a fence longer than any in it."""
    text = "\n".join(lines)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}sh\n{text}\n{fence}"
