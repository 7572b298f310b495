"""Who connected, and which children ended."""

from __future__ import annotations

import os
import socket
import struct
from unittest import mock

from xtreemos.foundation.peers import peer_ids
from xtreemos.foundation.reaping import ended_children


def test_the_kernel_tells_pid_and_uid_of_the_other_end():
    left, right = socket.socketpair()
    with left, right:
        assert peer_ids(left) == (os.getpid(), os.getuid())


def test_a_uid_in_the_upper_half_is_no_negative_number():
    sock = mock.Mock()
    sock.getsockopt.return_value = struct.pack("iII", 4711, 2**32 - 2, 0)
    assert peer_ids(sock) == (4711, 2**32 - 2)


def test_children_that_ended_are_reaped_once_and_nobody_is_waited_for():
    reading, writing = os.pipe()
    ended, lives = os.fork(), 0
    if ended == 0:
        os._exit(7)
    lives = os.fork()
    if lives == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert [(pid, os.waitstatus_to_exitcode(status)) for pid, status in ended_children() if pid == ended] == [(ended, 7)]
    assert ended not in [pid for pid, _status in ended_children()]
    os.close(writing)
    os.close(reading)
    os.waitpid(lives, 0)
