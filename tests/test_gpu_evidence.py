"""The collection of evidence from a GPU stops in time, survives its checks, and goes on from its state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_evidence  # type: ignore[import-not-found]

    return gpu_evidence


HERE = {"device": "a card", "torch": "2", "code": "abc", "cuda": None, "importable": ["pytest"]}


def evidence(module: Any, state: Path, *names: str, again: bool = False, **changed: Any) -> Any:
    import gpu_checks  # type: ignore[import-not-found]

    place = module.Place(state, state / "data", True)
    checks = [check for check in [*gpu_checks.HIDDEN, *module.CHECKS] if check.name in names]
    return module.Evidence(checks, place, {**HERE, **changed}, again=again)


def test_a_check_that_crashes_is_recorded_and_the_next_one_runs(gpu_evidence: Any, tmp_path: Path) -> None:
    found = evidence(gpu_evidence, tmp_path, "abort", "hang", "limits out of memory")
    began = time.monotonic()
    gpu_evidence.collect(found, began + 2 + 2 * gpu_evidence.GRACE_S)
    assert time.monotonic() - began < 2 + 2 * gpu_evidence.GRACE_S
    record = json.loads((tmp_path / "abort.json").read_text())
    assert (record["status"], record["tries"], record["found"]) == ("crashed", 1, {"half": True})
    assert "about to abort" in record["last_lines"]
    hanging = json.loads((tmp_path / "hang.json").read_text())
    assert hanging["status"] == "timed out"
    assert any("out of memory" in row and "skipped: it needs a CUDA device" in row for row in found.rows())

    later = evidence(gpu_evidence, tmp_path, "abort", "hang")
    assert [check.name for check in later.checks if later.is_due(check)] == ["hang"], "a crash is not repeated unasked"
    assert later.estimate(later.checks[1]) > hanging["seconds"], "it has shown that it needs more"


def test_what_another_card_or_code_gave_is_shown_as_such_and_run_again_only_if_asked(
    gpu_evidence: Any, tmp_path: Path
) -> None:
    found = evidence(gpu_evidence, tmp_path, "abort")
    (check,) = found.checks
    gpu_evidence.collect(found, time.monotonic() + 60)
    assert not evidence(gpu_evidence, tmp_path, "abort", code="def").is_due(check)
    assert evidence(gpu_evidence, tmp_path, "abort", again=True, code="def").is_due(check)
    assert "code abc" in evidence(gpu_evidence, tmp_path, "abort", code="def").rows()[0]
    gpu_evidence.put_report(tmp_path / "all.json", found.report())
    gpu_evidence.put_report(tmp_path / "all.json", evidence(gpu_evidence, tmp_path, device="other").report())
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"a card", "other"}


def test_a_check_that_does_not_fit_is_not_started(gpu_evidence: Any, tmp_path: Path) -> None:
    found = evidence(gpu_evidence, tmp_path, "abort")
    gpu_evidence.collect(found, time.monotonic() + 2 * gpu_evidence.GRACE_S)
    assert not found.records
    assert "not run: it takes about" in found.rows()[0]


def write_wheel(path: Path) -> Path:
    """A wheel of one module, named as its distribution."""
    name, version, *_ = path.name.split("-")
    info = f"{name}-{version}.dist-info"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_the_kit_installs_ray_once_all_of_its_parts_have_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_kit  # type: ignore[import-not-found]

    kit, site = tmp_path / "the kit", tmp_path / "site"
    site.mkdir()
    (site / ".wheels").touch()  # the others are there
    gpu_kit.split(write_wheel(kit / "ray-2.0-py3-none-any.whl"), kit / "ray", 200)
    (kit / "setup.sh").write_text(gpu_kit.SETUP)
    last = max((kit / "ray").glob("part*"))
    late = last.rename(tmp_path / last.name)
    installed = []
    for _ in range(2):
        line = ["bash", "-ec", f'. "{kit}/setup.sh"; echo $PYTHONPATH']
        done = subprocess.run(
            line, env={**os.environ, "GPU_SITE": str(site)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(site))
        installed.append((site / "ray" / "__init__.py").exists())
        assert not list(site.glob("*.whl"))
        if late.exists():
            late.rename(last)
    assert installed == [False, True]


@pytest.mark.slow
def test_the_checks_run_on_a_cpu_in_little_without_ray(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, BENCHMARKS / "gpu_evidence.py", "--small", "--state", tmp_path / "state"]
    line += ["--json", tmp_path / "found.json", "--budget_s", "270"]
    for _ in range(2):  # on busy cores one call does not come to the end
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (report,) = json.loads((tmp_path / "found.json").read_text()).values()
    statuses = {name: record["status"] for name, record in report["checks"].items()}
    assert not {"failed", "crashed"} & set(statuses.values()), done.stdout
    assert statuses["tests"] == statuses["ids killed"] == "passed", done.stdout
    assert report["skipped"]["ids on ray"] == "ray cannot be imported"
