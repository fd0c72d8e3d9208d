"""One self-contained HTML page on a finished run, and the numbers behind it."""
