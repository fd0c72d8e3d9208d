"""Tars in the layout of WebDataset: the files of a sample lie side by side and share their name up to the first dot."""
