"""A training changes how its process allocates memory only where the process is the package's own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

# A block just below glibc's largest threshold is mapped on its own until that threshold was set to its maximum.
CODE = """
import ctypes, sys
import unseen_ray as ur
from unseen_ray.training.host import claim_process

if sys.argv[1] == "own":
    claim_process()
source = {"use": "digits", "limit": 100}
recipe = {"epochs": 1, "min_steps": 0}
ur.prune(ur.PruneConfig(source=source, keep=0.5, out=sys.argv[2], executor="local", recipe=recipe))

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.malloc.argtypes = Info, ctypes.c_void_p, [ctypes.c_size_t]
before = libc.mallinfo2().hblks
assert libc.malloc((32 << 20) - (64 << 10))
print("mapped" if libc.mallinfo2().hblks > before else "kept")
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="tells only with glibc 2.33 or later")
@pytest.mark.slow
@pytest.mark.parametrize(("process", "block"), [("user", "mapped"), ("own", "kept")])
def test_the_allocator_of_a_users_python_stays_as_it_was(process: str, block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, process, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == block
