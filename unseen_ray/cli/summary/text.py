"""Parts of sentences that all commands share."""

from __future__ import annotations

__all__ = ["accuracy_text", "bytes_text", "held_out_text", "hours_text", "several"]


def accuracy_text(accuracy: float, task: str) -> str:
    """'0.968 unseen' for a finished task of this name; 'trained' where its model was trained on what it scored."""
    return f"{accuracy:.3f} {'trained' if ' fitting' in task else 'unseen'}"


def several(count: int, what: str) -> str:
    """'1 stage', '3 stages'."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def hours_text(hours: float) -> str:
    """'2.5 h', '12.0 min', '8 s'."""
    return (
        f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours * 60 >= 1 else f"{hours * 3600:,.0f} s"
    )


def bytes_text(count: float) -> str:
    """'12 kB', '3.1 MB', '1.2 TB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if count < 10 and unit in ("MB", "GB") else f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def held_out_text(held_out: int, others: int) -> str:
    """' (359 held out of 1,797)' behind a number of samples; empty if none are held out.

    Args:
        held_out: samples of the holdout.
        others: all other samples of the source.
    """
    return f" ({held_out:,} held out of {held_out + others:,})" if held_out else ""
