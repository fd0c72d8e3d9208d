"""From encoded images to uint8 pixels of one size: held in memory or in files, or decoded at every read."""
