"""From encoded images to uint8 pixels of one size, in memory, in files, or decoded at every read."""
