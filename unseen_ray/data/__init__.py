"""From encoded images to uint8 pixels of one size. Needs numpy and Pillow; torch only for a Subset of the coreset."""
