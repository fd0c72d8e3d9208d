"""What commands print: text for stdout, and values for `--json`."""
