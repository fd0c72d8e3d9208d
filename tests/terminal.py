"""A real pseudo-terminal, and what a reader sees of what was written to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from typing import IO

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.|([\r\n\x08])|([^\x1b\r\n\x08]+)", re.DOTALL)


@contextlib.contextmanager
def terminal(columns: int, rows: int = 40) -> Iterator[tuple[int, IO[str], list[str]]]:
    """(our end, the other end as a text stream, what was read so far) of a pseudo-terminal; all is read when it closes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    read: list[str] = []

    def drain() -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody holds the other end any more
            while part := os.read(ours, 65536):
                read.append(part.decode(errors="replace"))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream, read
    reader.join(10)
    os.close(ours)


def screen(text: str, columns: int) -> list[str]:
    """The lines that a terminal shows after this text: it wraps at its width, and obeys what moves the cursor."""
    lines: list[list[str]] = [[]]
    y = x = 0
    for numbers, letter, control, plain in _CONTROL.findall(text):
        count = int(numbers) if numbers.isdecimal() else 1
        if letter == "A":
            y = max(y - count, 0)
        elif letter == "K":
            lines[y] = [] if numbers == "2" else lines[y][:x]
        elif control == "\r":
            x = 0
        elif control == "\n":
            y += 1
        elif control == "\x08":
            x = max(x - 1, 0)
        for sign in plain:
            if x == columns:
                x, y = 0, y + 1
            while len(lines) <= y:
                lines.append([])
            lines[y] += [" "] * (x - len(lines[y]))
            lines[y][x : x + 1] = [sign]
            x += 1
        while len(lines) <= y:
            lines.append([])
    return ["".join(line).rstrip() for line in lines]
