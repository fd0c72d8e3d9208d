"""What a folder of data is, read from the names in it: a tree of classes, splits side by side, or neither."""
