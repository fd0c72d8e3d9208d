"""Where samples come from. Labels and counts need neither torch nor a decoded pixel."""
