"""One folder with all that `gpu_evidence.py` needs on a machine with a GPU, Python and torch, but no network.

It has the wheels that the package and its tests need, but for those that `--has` names, Ray's in parts of `--part_mb`, the data files,
and `setup.sh`, which installs them from there. Ray is installed once all its parts have come; until then the checks that need it
are skipped.

python benchmarks/gpu_kit.py --into build/gpu-kit --data data
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from gpu_checks import CIFAR10, ROOT, TINY

TESTS = ["pytest>=8", "pytest-timeout>=2.3"]
TORCH = r"torch|torchvision|triton|nvidia-.*|cuda-.*"  # comes with torch
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + ["manylinux2014_x86_64"]
SETUP = """\
# Source this: it installs the kit beside it into $GPU_SITE, and points Python and the checks there.
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export GPU_SITE=${GPU_SITE:-/tmp/gpu-site} UNSEEN_DATA=$kit/data RAY_USAGE_STATS_ENABLED=0
export PYTHONPATH=$GPU_SITE${PYTHONPATH:+:$PYTHONPATH}
install() { python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$GPU_SITE" --upgrade "$@"; }
[ -f "$GPU_SITE/.wheels" ] || { install "$kit"/wheels/*.whl && touch "$GPU_SITE/.wheels"; }
ray=$GPU_SITE/$(cut -c67- "$kit/ray/sha256")
if [ ! -d "$GPU_SITE/ray" ] && cat "$kit"/ray/part* >"$ray" 2>/dev/null && (cd "$GPU_SITE" && sha256sum --status -c "$kit/ray/sha256"); then
    install "$ray"
fi
rm -f "$ray"
"""


def required(has: str) -> list[str]:
    """What the package and its GPU tests need, but for what is there."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = [*tomllib.load(file)["project"]["dependencies"], *TESTS]
    return [each for each in asked if not re.fullmatch(has, name_of(each))]


def name_of(requirement: str) -> str:
    """The normal form of the name that a requirement begins with."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()


def wheels_of(asked: Sequence[str], has: str, python: str) -> list[str]:
    """NAME==VERSION of all that they need, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        line = ["install", "--dry-run", "--ignore-installed", "--report", str(report), "--target", folder]
        pip([*line, *for_machine(python), *asked])
        found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return [f"{each['name']}=={each['version']}" for each in found if not re.fullmatch(has, name_of(each["name"]))]


def for_machine(python: str) -> list[str]:
    """Options by which pip takes wheels for the other machine."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]


def pip(words: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-qq", *words], check=False)
    if done.returncode:
        raise SystemExit(f"pip {words[0]} ended with {done.returncode}: see above.")


def split(wheel: Path, into: Path, part_bytes: int) -> None:
    """Put a wheel into parts, with its digest, and remove it."""
    into.mkdir()
    data = wheel.read_bytes()
    (into / "sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {wheel.name}\n")
    for place, start in enumerate(range(0, len(data), part_bytes)):
        (into / f"part{place:02d}").write_bytes(data[start : start + part_bytes])
    wheel.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="folder to make")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("UNSEEN_DATA", "data")))
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine")
    parser.add_argument(
        "--has", type=Path, metavar="FILE", help="what the machine has beside torch, as `pip freeze` lists it there"
    )
    parser.add_argument("--part_mb", type=int, default=27, help="MB of a part of Ray's wheel")
    args = parser.parse_args()
    if args.into.exists():
        raise SystemExit(f"--into {args.into} is there already. Remove it, or name another folder.")
    missing = [name for name in (*CIFAR10, *TINY) if not (args.data / name).exists()]
    if missing:
        raise SystemExit(f"--data {args.data} lacks {', '.join(missing)}.")
    listed = args.has.read_text().splitlines() if args.has else []
    has = "|".join([TORCH, *(re.escape(name_of(line)) for line in listed if line.strip())])
    wheels, data = args.into / "wheels", args.into / "data"
    for folder in (wheels, data):
        folder.mkdir(parents=True)
    pip(
        [
            "download",
            "--no-deps",
            "-d",
            str(wheels),
            *for_machine(args.python),
            *wheels_of(required(has), has, args.python),
        ]
    )
    (ray,) = wheels.glob("ray-*.whl")
    split(ray, args.into / "ray", args.part_mb * 1_000_000)
    for name in (*CIFAR10, *TINY):
        shutil.copyfile(args.data / name, data / name)
    (args.into / "setup.sh").write_text(SETUP)
    for folder in (wheels, args.into / "ray", data):
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
