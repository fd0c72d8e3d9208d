"""From encoded images to uint8 pixels of one size. Needs numpy and Pillow, not torch."""
