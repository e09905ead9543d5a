"""Every test that runs in Slicer, as one command, for a Slicer that was downloaded and has no CTest:

    Slicer --no-splash --no-main-window --ignore-slicerrc --additional-module-paths HybridMIMTraining \
        HybridMIMSegmentation --python-script Testing/InsideSlicer/run_in_slicer.py

Slicer ends with 0 if all tests ran and passed. A test that was skipped is a failure here, named with its reason: what
passes must have been tested. ``HYBRIDMIM_TEST_SUMMARY`` names a JSON file that is written with the counts,
``HYBRIDMIM_TEST_FILES`` the files to run, with commas between them, instead of all.
"""

import importlib
import json
import os
import sys
import unittest
from pathlib import Path

import slicer

FILES = ("HybridMIMTraining", "HybridMIMSegmentation", "HybridMIMInsideSlicerTest")
"""The self-tests in the module files, and those beside this file."""


def run():
    """Run all; returns the counts and, for each test that did not pass, what it says."""
    sys.path.append(str(Path(__file__).resolve().parent))
    files = os.environ.get("HYBRIDMIM_TEST_FILES", ",".join(FILES)).split(",")
    cases = [case for name in files for case in cases_of(importlib.import_module(name))]
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    return {
        "ran": result.testsRun,
        "failed": [test.id() for test, _ in result.failures + result.errors],
        "skipped": {test.id(): reason for test, reason in result.skipped},
    }


def cases_of(module):
    """The test cases of a file, without those that it imports, such as Slicer's empty base class."""
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    return [one for one in own if issubclass(one, unittest.TestCase)]


def main():
    summary = run()
    print(json.dumps(summary, indent=1))
    file = os.environ.get("HYBRIDMIM_TEST_SUMMARY")
    if file:
        Path(file).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return 0 if summary["ran"] and not summary["failed"] and not summary["skipped"] else 1


status = 1
try:
    status = main()
finally:
    # Whatever happens Slicer ends, and does not wait for somebody to close its window.
    slicer.util.exit(status)
