"""The claims on a GPU: a suite narrowed to one keep and its first seeds. What an earlier call trained is not trained again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml
from gpu_checks import ROOT, Found, Place

TRIED_ON = 200  # images, in little


def one_keep(place: Place, suite: str, data: tuple[str, str], seeds: int, keep: float) -> Found:
    """A suite's table for one keep with so many seeds."""
    from suite import lines_of

    home = place.state / "runs" / suite
    asked = yaml.safe_load((ROOT / "benchmarks" / "suites" / f"{suite}.yaml").read_text())
    asked |= {"seeds": asked["seeds"][:seeds], "rows": [{**row, "keep": [keep]} for row in asked["rows"]]}
    if place.small:
        asked["model"] = {"use": "airbench", "width": 8} if asked["model"] == "airbench" else "small_cnn"
    home.mkdir(parents=True, exist_ok=True)
    narrowed, table = home / f"{seeds} seeds keep {keep}.yaml", home / f"{seeds} seeds keep {keep}.json"
    narrowed.write_text(yaml.safe_dump(asked))
    line = [
        sys.executable,
        str(ROOT / "benchmarks" / "suite.py"),
        str(narrowed),
        "--out",
        str(home),
        "--json",
        str(table),
    ]
    line += ["--source", str(place.data / data[0]), "--test", str(place.data / data[1])]
    line += ["--prune_on", "local", "--train_on", "local", *(["--try_on", str(TRIED_ON)] if place.small else [])]
    done = subprocess.run(line, check=False)
    if done.returncode:
        raise SystemExit(f"suite.py ended with {done.returncode}")
    report = json.loads(table.read_text())
    del report["suite"]
    for sentence in (*lines_of(report), *_more_of(report)):
        yield sentence, report


def _more_of(report: dict[str, Any]) -> Iterator[str]:
    """Accuracies under the other budget, and what choosing costs, as a share of one training on all samples."""
    for name, rows in report.items():
        if name.startswith("rows_by_"):
            yield f"by {name.removeprefix('rows_by_')}: " + ", ".join(
                f"{row['method']} {row['mean']:.4f}" for row in rows
            )
    yield "bill: " + ", ".join(f"{method} {bill:.2f}" for method, bill in report["bills"].items() if bill is not None)
