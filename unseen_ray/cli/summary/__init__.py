"""The answers of the commands, as text for stdout and as values for `--json`."""
