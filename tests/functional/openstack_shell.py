"""Run `openstack` commands one after the other in one process: most of the time of a command goes
into starting Python.

For the interpreter that the stock client is installed for, which need not be that of the tests.
Reads one command a line, as a JSON list of words, and answers each with a JSON line: status, what
it printed, what it complained of."""

from __future__ import annotations

import contextlib
import io
import json
import sys

from openstackclient import shell

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = shell.main(json.loads(line))
        except SystemExit as e:
            status = e.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
