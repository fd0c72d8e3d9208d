"""Tables as text: no word is broken at any width of a terminal, and a pipe gets tab-separated values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from unseen_ray.storage.plain_text import shown

__all__ = ["Cell", "Column", "Table"]

Cell = str | int | float | None

_GAP = "   "
_FLAT = str.maketrans("\t\r\n", "   ")
_PROSE = 24  # the narrowest column of sentences that reads well


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its header, which may be wrapped between words.
        rank: 0 is always shown; where the terminal is too narrow, columns with the highest rank are left out first.
        form: format of its numbers, such as ",", ".4f" or ".1%"; cells that hold text are shown as they are.
        left: whether it is aligned to the left.
        prose: whether its cells are sentences, which may be wrapped between words.
    """

    title: str
    rank: int = 0
    form: str = ""
    left: bool = False
    prose: bool = False

    def text(self, cell: Cell, *, grouped: bool = True) -> str:
        """A cell as text; `grouped` says whether thousands are separated."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return ""
        if isinstance(cell, str):
            return shown(cell.translate(_FLAT))  # before it is measured
        return format(cell, self.form if grouped else self.form.replace(",", ""))


@dataclass(slots=True)
class Table:
    """Rows of cells below the headers of their columns.

    Attributes:
        columns: from left to right.
        rows: the cells of each row.
        ends: how many rows a terminal shows at most, half of them from the end; None for all.
        finished: indices of rows that are shown dimmed.
    """

    columns: Sequence[Column]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    ends: int | None = None
    finished: set[int] = field(default_factory=set)

    def add(self, *cells: Cell, finished: bool = False) -> None:
        """Add a row."""
        if finished:
            self.finished.add(len(self.rows))
        self.rows.append(cells)

    def tsv(self) -> list[str]:
        """A line of headers and a line for each row, tab-separated; numbers without separated thousands."""
        texts = [
            [column.text(c, grouped=False) for column, c in zip(self.columns, row, strict=True)] for row in self.rows
        ]
        return ["\t".join(row) for row in ([column.title for column in self.columns], *texts)]

    def lines(self, width: int) -> list[str]:
        """The lines that a terminal of this width shows; see `Column` for what is left out of a narrow one."""
        return [line for line, _ in self._styled(width)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line, style in self._styled(options.max_width):
            yield Text(line, style=style, no_wrap=True, overflow="ignore")

    def _styled(self, width: int) -> list[tuple[str, str]]:
        """(line, style) for a terminal of this width."""
        rows = self._shown_rows()
        shown = list(range(len(self.columns)))
        while (widths := self._widths(rows, shown, width)) is None:
            rarest = max(shown, key=lambda c: (self.columns[c].rank, c))
            if self.columns[rarest].rank == 0:
                return [(line, "") for line in self._sideways(rows, width)]
            shown.remove(rarest)
        lines = [(line, "bold") for line in self._row([self.columns[c].title for c in shown], shown, widths, low=True)]
        for place, row in rows:
            style = "dim" if place in self.finished else ""
            lines += [(line, style) for line in self._row([row[c] for c in shown], shown, widths)]
        if left_out := [column.title for c, column in enumerate(self.columns) if c not in shown and column.title]:
            note = f"(a wider terminal, or a pipe, also shows: {', '.join(left_out)})"
            lines += [(line, "dim") for line in _wrapped(note, width)]
        return lines

    def _shown_rows(self) -> list[tuple[int, list[str]]]:
        """(index, cells as text) of the rows that a terminal shows."""
        rows = [
            (place, [column.text(cell) for column, cell in zip(self.columns, row, strict=True)])
            for place, row in enumerate(self.rows)
        ]
        if self.ends is None or len(rows) <= self.ends:
            return rows
        half = self.ends // 2
        more = [f"... {len(rows) - 2 * half:,} more", *[""] * (len(self.columns) - 1)]
        return [*rows[:half], (-1, more), *rows[len(rows) - half :]]

    def _widths(self, rows: list[tuple[int, list[str]]], shown: list[int], width: int) -> list[int] | None:
        """The width of each shown column; None if they do not fit, even with wrapped headers."""
        room = width - len(_GAP) * (len(shown) - 1)
        for wrapped in (False, True):
            widths = []
            for c in shown:
                column = self.columns[c]
                words = [part for _, row in rows for part in (row[c].split() if column.prose else [row[c]])]
                head = column.title.split() if wrapped else [column.title]
                widths.append(max(map(cell_len, [*words, *head]), default=0))
                if column.prose:
                    widths[-1] = max(widths[-1], min(_PROSE, max((cell_len(row[c]) for _, row in rows), default=0)))
            spare = room - sum(widths)
            if spare >= 0:
                for place, c in enumerate(shown):
                    if self.columns[c].prose:
                        longest = max((cell_len(row[c]) for _, row in rows), default=0)
                        more = min(spare, max(longest - widths[place], 0))
                        widths[place], spare = widths[place] + more, spare - more
                return widths
        return None

    def _row(self, texts: list[str], shown: list[int], widths: list[int], *, low: bool = False) -> list[str]:
        """The lines of a row, its cells wrapped to their columns, at the foot of the row if `low`."""
        cells = [_wrapped(text, size) for text, size in zip(texts, widths, strict=True)]
        height = max(map(len, cells))
        cells = [[""] * (height - len(cell)) + cell if low else cell + [""] * (height - len(cell)) for cell in cells]
        return [
            _GAP.join(
                _padded(cell[place], size, left=self.columns[c].left)
                for cell, size, c in zip(cells, widths, shown, strict=True)
            ).rstrip()
            for place in range(height)
        ]

    def _sideways(self, rows: list[tuple[int, list[str]]], width: int) -> list[str]:
        """A block of lines for each row: the header of a column, then its cell."""
        size = max(cell_len(column.title) for column in self.columns)
        lines: list[str] = []
        for _, row in rows:
            lines += [""] if lines else []
            for column, text in zip(self.columns, row, strict=True):
                parts = _wrapped(text, max(width - size - len(_GAP), 1))
                heads = [column.title, *[""] * (len(parts) - 1)]
                lines += [f"{_padded(h, size, left=True)}{_GAP}{p}".rstrip() for h, p in zip(heads, parts, strict=True)]
        return lines


def _padded(text: str, size: int, *, left: bool) -> str:
    blank = " " * max(size - cell_len(text), 0)
    return text + blank if left else blank + text


def _wrapped(text: str, size: int) -> list[str]:
    """Lines of at most `size` columns, broken between words only; a longer word has a line of its own."""
    if cell_len(text) <= size:
        return [text]
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and cell_len(joined) > size:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines
