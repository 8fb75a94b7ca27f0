"""Checks the installed packages for known vulnerabilities with pip-audit, for `make check`.

    python .ci/audit.py [REQUIREMENTS] [--osv-url URL]

An audit without a working service finds nothing, so a canary is checked first: a version whose vulnerability has been
public for years. If the service cannot be reached or does not know the canary, the script prints that nothing was
audited and exits with 0. Otherwise a vulnerability that is not in `ACCEPTED` exits with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

#: requests 2.19.0 sends passwords on to other hosts (CVE-2018-18074).
CANARY = "requests==2.19.0"
#: Identifiers of vulnerabilities that do not affect foveate, with the reason. Ideally empty.
ACCEPTED: dict[str, str] = {}
#: Timeouts in seconds for the canary and for all packages.
SOON, LATE = 60, 900


def installed() -> list[str]:
    """Packages of this environment as requirements, except foveate, without local version suffixes (+cpu)."""
    found = {one.metadata["Name"].lower(): one.version.partition("+")[0] for one in distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != "foveate")


def ask(packages: list[str], url: str | None, seconds: int) -> list[dict[str, Any]]:
    """The response of the service for each package.

    Raises:
        OSError: the service could not be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(packages) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip", "-f", "json",
                   "--progress-spinner", "off", "--timeout", "10", "-s", "osv"]  # fmt: skip
        try:
            run = subprocess.run(
                [*command, *(["--osv-url", url] if url else [])], capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"no answer in {seconds} s") from None
    try:
        return json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise OSError(lines[-1][:200] if lines else f"pip-audit ended with {run.returncode}") from None


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="known vulnerabilities of installed packages")
    parser.add_argument("requirements", nargs="?", type=Path, help="a file of pins; default: the installed packages")
    parser.add_argument("--osv-url", help="URL of a different OSV service")
    options = parser.parse_args()
    try:
        if not any(one.get("vulns") for one in ask([CANARY], options.osv_url, SOON)):
            raise OSError(f"the service does not know that {CANARY} has a vulnerability")
        if options.requirements:
            packages = [line.strip() for line in options.requirements.read_text().splitlines() if line.strip()]
        else:
            packages = installed()
        found = ask(packages, options.osv_url, LATE)
    except OSError as error:
        print(f"NOT AUDITED for known vulnerabilities: {' '.join(str(error).split())[:160]}")
        return 0
    unknown = [one["name"] for one in found if "skip_reason" in one]
    bad = [
        f"{one['name']} {one['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no version'}"
        for one in found
        for hole in one.get("vulns", ())
        if not {hole["id"], *hole.get("aliases", ())} & ACCEPTED.keys()
    ]
    print(f"audited {len(found) - len(unknown)} packages, {len(unknown)} unknown to the service; {len(bad)} vulnerable")
    print(*bad, sep="\n", end="\n" if bad else "")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
