"""Files on local disks and object stores: whole or not there, retried, checksummed, locked. Needs pyarrow."""
