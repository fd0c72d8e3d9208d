"""Evidence from a GPU that is at hand for minutes: checks in order of worth, each in a process of its own, within a budget of seconds.

The same line goes on where the last one stopped: `--state` has a file a check. A check that fails, crashes or takes too long is recorded
with its last lines, and the next one runs.

python benchmarks/gpu_evidence.py --budget_s 480 --state runs/gpu --data data --json benchmarks/results/gpu_evidence.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_checks import CHECKS, ROOT, Check, Place, write_whole

GRACE_S = 5.0  # for what is asked to end, and again for what is killed
LEAST_S = 60.0  # that is worth starting a check for which resumes
SAME = ("device", "torch", "code")
DONE, OPEN = ("passed", "failed", "crashed"), ("timed out", "broken off")
TRIES = 3
SHOWN_LINES = 12


class Evidence:
    """The checks that were asked for, and what is known of them."""

    def __init__(self, checks: Sequence[Check], place: Place, conditions: dict[str, Any], *, again: bool) -> None:
        self.checks, self.place, self.conditions, self._again = checks, place, conditions, again
        self.records: dict[str, dict[str, Any]] = {}
        for check in checks:
            path = place.state / check.file
            if path.exists():
                self.records[check.name] = json.loads(path.read_text())

    def lacks(self, check: Check) -> str | None:
        """What a check needs and is not here."""
        for need in check.needs:
            if need == "cuda" and self.conditions["cuda"] is None:
                return "it needs a CUDA device"
            if need.endswith(".parquet") and not (self.place.data / need).exists():
                return f"{need} is not in --data {self.place.data}"
            if need in ("ray", "pytest") and need not in self.conditions["importable"]:
                return f"{need} cannot be imported"
        return None

    def differs(self, check: Check) -> str | None:
        """In what the conditions of a check's record differ from those of today."""
        then = self.records[check.name]["conditions"]
        other = [f"{name} {then.get(name)}" for name in SAME if then.get(name) != self.conditions[name]]
        return ", ".join(other) or None

    def is_due(self, check: Check) -> bool:
        """Whether it is to be run, time permitting."""
        record = self.records.get(check.name)
        if record is None:
            return True
        if record["status"] in OPEN:
            return check.resumes or record["tries"] < TRIES
        return self._again and (record["status"] != "passed" or self.differs(check) is not None)

    def estimate(self, check: Check) -> float:
        """Seconds that a check takes: by its last run, else by runs of its kind, else as it says itself."""
        record = self.records.get(check.name)
        if record is not None:
            return float(record["seconds"]) * (1.5 if record["status"] in OPEN else 1.2)
        said = check.small_s if self.place.small else check.seconds
        alike = [
            self.records[other.name] for other in self.checks if other.call == check.call and other.name in self.records
        ]
        ratios = [known["seconds"] / known["said_s"] for known in alike if known["status"] == "passed"]
        return said * min(max(statistics.median(ratios), 0.5), 3.0) if ratios else said

    def run(self, check: Check, left_s: float) -> None:
        """Run a check that fits, and record it whatever becomes of it."""
        estimate = self.estimate(check)
        limit = left_s if check.resumes else min(left_s, 2 * estimate + 20)
        before = self.records.get(check.name, {})
        record: dict[str, Any] = {
            "status": "broken off",
            "seconds": estimate,
            "said_s": check.small_s if self.place.small else check.seconds,
            "tries": before.get("tries", 0) + 1,
            "conditions": self.conditions,
        }
        self._record(check, record)  # should this process be killed meanwhile
        into, log = self.place.state / "found" / check.file, self.place.state / "logs" / f"{check.name}.log"
        into.unlink(missing_ok=True)
        began = time.monotonic()
        code = _run_within(limit, self._line(check, into), log)
        earlier = before["seconds"] if check.resumes and before.get("status") in OPEN else 0
        record |= {"status": _status(code), "seconds": round(earlier + time.monotonic() - began, 1)}
        record |= json.loads(into.read_text()) if into.exists() else {}
        if code != 0:
            record["last_lines"] = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        self._record(check, record)

    def _line(self, check: Check, into: Path) -> list[str]:
        place = self.place
        line = [sys.executable, str(ROOT / "benchmarks" / "gpu_checks.py"), check.name, "--into", str(into)]
        line += ["--state", str(place.state), "--data", str(place.data)]
        return [*line, "--small"] if place.small else line

    def _record(self, check: Check, record: dict[str, Any]) -> None:
        self.records[check.name] = record
        write_whole(self.place.state / check.file, record)

    def rows(self) -> list[str]:
        """What the terminal gets at the end."""
        rows = []
        for check in self.checks:
            record, lacking = self.records.get(check.name), self.lacks(check)
            if record is None:
                why = f"skipped: {lacking}" if lacking else f"not run: it takes about {self.estimate(check):.0f} s"
                rows.append(f"{check.name:32} {why}")
                continue
            stale = self.differs(check)
            note = f"  (on {stale}; --again runs it here)" if stale else ""
            rows.append(f"{check.name:32} {record['status']} in {record['seconds']:.0f} s{note}")
            rows += [f"    {line}" for line in record.get("says", [])]
            rows += [f"  | {line}" for line in record.get("last_lines", [])]
        return rows

    def report(self) -> dict[str, Any]:
        """All that is known under the card's name."""
        skipped = {check.name: why for check in self.checks if (why := self.lacks(check))}
        return {"conditions": self.conditions, "checks": self.records, "skipped": skipped}


def _status(code: int | None) -> str:
    if code is None:
        return "timed out"
    return "passed" if code == 0 else "crashed" if code < 0 else "failed"


def _run_within(limit_s: float, line: list[str], log: Path) -> int | None:
    """Exit code of a command, None if it and what it started had to be ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(line, stdout=stream, stderr=stream, env=environment, start_new_session=True)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGTERM)  # runs store where they are
            return None
        finally:
            _end(process, signal.SIGKILL)  # nothing of it may hold the GPU's memory


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and all of its group, and wait until they are gone, for a while."""
    ends = time.monotonic() + GRACE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
        while time.monotonic() < ends:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def conditions_of_machine(state: Path) -> dict[str, Any]:
    """What holds here, asked of another process: this one leaves the GPU alone."""
    log = state / "logs" / "conditions.log"
    code = _run_within(120, [sys.executable, str(ROOT / "benchmarks" / "gpu_checks.py")], log)
    lines = log.read_text(errors="replace").splitlines()
    if code != 0:
        raise SystemExit("\n".join([*lines[-SHOWN_LINES:], "the conditions cannot be found out: see above."]))
    return dict(json.loads(lines[-1]))


def collect(evidence: Evidence, ends: float) -> None:
    """Run what is due and fits, in order."""
    for check in evidence.checks:
        if not evidence.is_due(check) or evidence.lacks(check):
            continue
        left, estimate = ends - time.monotonic() - 2 * GRACE_S, evidence.estimate(check)
        if left < (min(estimate, LEAST_S) if check.resumes else estimate):
            continue
        print(f"{check.name}: about {estimate:.0f} of {left:.0f} s", flush=True)
        evidence.run(check, left)


def put_report(path: Path, report: dict[str, Any]) -> None:
    """Put a report under its card's name beside those of other cards."""
    known = json.loads(path.read_text()) if path.exists() else {}
    write_whole(path, {**known, report["conditions"]["device"]: report})


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget_s", type=float, default=480, help="seconds that this call may take")
    parser.add_argument("--state", type=Path, required=True, help="folder of what is known, and of runs that resume")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("UNSEEN_DATA", "data")))
    parser.add_argument("--small", action="store_true", help="all of it in little, on a CPU too; its state is apart")
    parser.add_argument("--only", default="", metavar="WORD", help="checks whose name holds this")
    parser.add_argument(
        "--again", action="store_true", help="also checks that failed, or ran on other code, torch or card"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    # so that the check under way is ended, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    state = args.state.absolute() / "small" if args.small else args.state.absolute()
    place = Place(state, args.data.absolute(), args.small)
    asked = [check for check in CHECKS if args.only in check.name and (check.in_small or not args.small)]
    conditions = conditions_of_machine(place.state)
    write_whole(place.state / "conditions.json", conditions)
    evidence = Evidence(asked, place, conditions, again=args.again)
    collect(evidence, began + args.budget_s)
    print("\n".join(evidence.rows()))
    if args.json is not None:
        put_report(args.json, evidence.report())


if __name__ == "__main__":
    main()
