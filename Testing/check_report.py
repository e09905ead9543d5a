"""Whether a report of pytest (JUnit XML) says that enough was tested: ``python check_report.py REPORT --least 2000``.

A run of tests is green when all of them were skipped. Here that is an error: fewer than ``--least`` tests that ran, a
test that failed, or one that was skipped for the lack of a package that the test requirements install. Every other
reason for which tests were skipped is printed, with how many.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

REFUSED = re.compile(
    r"needs slicer-core|openvino is not installed|needs highdicom|could not import|packages are missing", re.I
)
"""Reasons that mean that the set-up is broken, and not that this machine has no such thing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--least", type=int, default=1, help="tests that must have run [1]")
    given = parser.parse_args(arguments)
    cases = list(ElementTree.parse(given.report).iter("testcase"))
    reasons = Counter(_reason(case) for case in cases if case.find("skipped") is not None)
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    ran = len(cases) - reasons.total()
    print(f"{ran} tests ran, {failed} of them failed, {reasons.total()} were skipped")
    for reason, count in reasons.most_common():
        print(f"{count:6} skipped: {reason}")
    problems = _problems(ran, given.least, failed, reasons)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _reason(case: ElementTree.Element) -> str:
    """Why a test was skipped, without the folders of this machine."""
    skipped = case.find("skipped")
    text = skipped.get("message", "") if skipped is not None else ""
    return re.sub(r"(?<=at )\S*[/\\]", "", text) or "no reason is given"


def _problems(ran: int, least: int, failed: int, reasons: Counter[str]) -> list[str]:
    found = [f"{failed} tests failed"] if failed else []
    if ran < max(least, 1):
        found.append(f"{ran} tests ran, and {max(least, 1)} are the least that must")
    return found + [f"skipped for what should be installed: {reason}" for reason in reasons if REFUSED.search(reason)]


if __name__ == "__main__":
    sys.exit(main())
