"""Runs checks and says what came of them."""

import signal
import sys
import time
import traceback
from itertools import groupby

LIMIT_SECONDS = 280


class Skipped(Exception):
    """Why a client is not asked."""


class OutOfTime(BaseException):
    """No failure of the check it is raised in: it ends the run."""


class Report:
    def __init__(self, names):
        self._names = names
        self._failures = []
        signal.signal(signal.SIGALRM, self._out_of_time)
        signal.alarm(LIMIT_SECONDS)

    def _out_of_time(self, *_):
        raise OutOfTime(f"the clients were not served within {LIMIT_SECONDS} s")

    def run(self, checks, server):
        """Runs each of `checks`, which are (client, function)s, those of a client in a row."""
        before = len(self._failures)
        for client, group in groupby(checks, lambda check: check[0]):
            self._run_client(client, (function for _, function in group))
        if len(self._failures) > before:
            print(f"the server's log ended with:\n{server.log_end()}", file=sys.stderr)

    def _run_client(self, client, functions):
        started, passed = time.monotonic(), 0
        for function in functions:
            name = f"{client}: {function.__name__}"
            if self._names and not any(part in name for part in self._names):
                continue
            try:
                function()
                passed += 1
            except Skipped as reason:
                print(f"{name}: skipped: {reason}", flush=True)
            except Exception:
                self._failures.append(name)
                print(f"{name}: FAILED\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            except OutOfTime as reason:
                sys.exit(f"conformance: {reason}; it was at {name}")
        if passed:
            seconds = time.monotonic() - started
            print(f"{client}: {passed} checks passed in {seconds:.1f} s", flush=True)

    def end(self):
        """The status to exit with."""
        if self._failures:
            print(f"conformance: failed: {', '.join(self._failures)}", file=sys.stderr)
            return 1
        print("conformance: all clients are served")
        return 0
