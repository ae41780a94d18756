"""A table of words, three ways: on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fer_lab.pages import cell, marked, plain_signs

Cells = Sequence[str]


class Table(NamedTuple):
    """`rows` have a cell for each column of `header`."""

    title: str
    header: Cells
    rows: Sequence[Cells]
    note: str = ""

    def show(self) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as Drawn

        drawn = Drawn(
            title=escape(self.title), title_justify="left", caption_justify="left", show_lines=False
        )
        for name in self.header:
            drawn.add_column(escape(name), overflow="fold")
        for row in self.rows:
            drawn.add_row(*map(escape, row))
        console = Console()
        console.print(drawn)
        if self.note:
            console.print(escape(self.note))

    def markdown(self) -> str:
        """Signs that Markdown or HTML would take for theirs stand for themselves, whoever named a run or a class."""
        head, *cells = [[cell(words) for words in line] for line in (self.header, *self.rows)]
        lines = [head, ["---"] * len(head), *cells]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        note = "\n".join(marked(line) for line in self.note.splitlines())
        return "\n\n".join(part for part in (f"## {marked(self.title)}", body, note) if part)

    def write_csv(self, path: Path) -> Path:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.header, *self.rows])
        return path


def write(folder: Path, stem: str, title: str, tables: Sequence[Table], pictures: Sequence[str] = ()) -> Path:
    """STEM.md with all tables and pictures, STEM.csv of the first table, STEM_2.csv …; returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables, start=1):
        table.write_csv(folder / (f"{stem}.csv" if number == 1 else f"{stem}_{number}.csv"))
    drawn = [f"![{plain_signs(title)}]({name})" for name in pictures]
    page = folder / f"{stem}.md"
    text = "\n\n".join([f"# {plain_signs(title)}", *drawn, *(table.markdown() for table in tables)])
    page.write_text(text + "\n", encoding="utf-8")
    return page


def percent(value: float) -> str:
    """A share in per cent with two digits; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{percent(low)}, {percent(high)}]"
