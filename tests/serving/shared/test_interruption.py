"""Signals that end a command, wherever they meet it."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, time
from serving.shared.interruption import Terminated, show_termination_as_interrupt

show_termination_as_interrupt()

class Finalized:
    def __del__(self):
        {finalizer}

try:
    thing = Finalized()
    del thing
    {after}
    time.sleep(20)
    print("went on")
except Terminated as ended:
    print("ended by", ended.number)
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)"


@pytest.mark.parametrize(("finalizer", "after"), [("pass", KILL), (KILL, "pass")])
def test_a_signal_is_an_exception_also_where_python_would_ignore_it(finalizer, after):
    program = PROGRAM.format(finalizer=finalizer, after=after)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("ended by 15\n", "")
