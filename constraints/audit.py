"""Look the locked versions up among the known vulnerabilities, with pip-audit.

    audit.py [PIP-AUDIT-OPTION …]

Ends with 0 if none is known, with 1 if some are, and with 3 if nobody could be asked.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent

# What users run: `embedded` has all that `server` has.
LOCKED: Final = HERE / "embedded.txt"

FOUND: Final = 1
UNKNOWN: Final = 3

_SECONDS: Final = 300


def audit(options: list[str]) -> int:
    """Print what is known; the exit code. `options` go to pip-audit."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        try:
            # Strict, because otherwise a package that nobody could be asked about counts as good.
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--require-hashes",
                 "--requirement", str(LOCKED), "--progress-spinner", "off",
                 "--format", "json", "--output", str(report), *options],
                stderr=subprocess.PIPE, text=True, check=False, timeout=_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"audit: no answer within {_SECONDS} s", file=sys.stderr)
            return UNKNOWN
        if not report.exists():
            # A failure to ask ends with the exit code of a finding, but without a report.
            last = done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
            print(f"audit: the data can't be had: {last[0]}", file=sys.stderr)
            return UNKNOWN
        packages = json.loads(report.read_text())["dependencies"]
    found = [(package, known) for package in packages for known in package["vulns"]]
    for package, known in found:
        fixed = ", ".join(known["fix_versions"]) or "none"
        names = " ".join([known["id"], *known["aliases"]])
        print(f"{package['name']} {package['version']}: {names}; fixed in: {fixed}")
    print(f"audit: {len(packages)} packages, {len(found)} known vulnerabilities")
    return FOUND if found else 0


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1:]))
