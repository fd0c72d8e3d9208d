"""Files on local disks and object stores: atomic writes, retries, checksums and locks. Needs pyarrow."""
