"""Where a run keeps decoded pixels, if memory does not hold them."""

from __future__ import annotations

import logging
import os
import shutil

from unseen_ray.data.images.memory import fits_in_memory
from unseen_ray.data.images.pixel_files import PixelFiles
from unseen_ray.data.sources.info import SourceInfo
from unseen_ray.runs.layout import PIXELS, pixel_folder
from unseen_ray.runs.tasks import Job
from unseen_ray.storage.filesystem import Folder, absolute_path, is_uri

__all__ = ["plan_files"]

logger = logging.getLogger(__name__)

_SPARE = 1 << 30  # bytes of a disk that are left free


def plan_files(job: Job, info: SourceInfo) -> PixelFiles | None:
    """The files for the decoded pixels of a run's source, or of its test source; None where memory holds them, or they are not to be
    kept or cannot be."""
    config, size_px, num_samples = job.config, job.size_px, len(info)
    asked = config.pixel_folder
    if fits_in_memory(num_samples, size_px, config.pixel_memory_gb) or asked == "none":
        return None
    if asked is None and config.fit is not None:  # what it reads of the images, if anything, is not known
        return None
    if asked is None and is_uri(job.out):
        logger.warning(
            "the pixels take %.1f GiB, more than pixel_memory_gb=%g, and images are decoded whenever they are read: name a pixel_folder "
            "on a disk that every node shares, so that each is decoded once.",
            num_samples * size_px * size_px * 3 / 2**30,
            config.pixel_memory_gb,
        )
        return None
    # The pixels in a run's folder are those that it began with; a folder of its own may meet a source that has changed since.
    root, content = (
        (job.folder.within(PIXELS), info.fingerprint) if asked is None else (Folder(absolute_path(asked)), info.content)
    )
    files = PixelFiles(
        folder=root.path(pixel_folder(content, size_px)), num_samples=num_samples, size_px=size_px, fence=root.fence
    )
    missing = _missing_space(files)
    if missing > 0:
        logger.warning(
            "the decoded pixels take %.1f GiB and %s lacks %.1f of it, so images are decoded whenever they are read. Free space, or name "
            "another disk by pixel_folder.",
            files.total_bytes / 2**30,
            root.root,
            missing / 2**30,
        )
        return None
    return files


def _missing_space(files: PixelFiles) -> int:
    """Bytes that the files need and a local disk lacks, those that stand there already counted as used."""
    if is_uri(files.folder):
        return 0
    place = files.folder
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    stands = sum(entry.stat().st_size for entry in os.scandir(place)) if place == files.folder else 0
    return files.total_bytes - stands + _SPARE - shutil.disk_usage(place).free
