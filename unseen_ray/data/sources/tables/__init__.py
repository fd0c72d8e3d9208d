"""Tables of images and labels in files of several formats, read alike."""
