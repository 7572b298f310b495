"""jobd's decisions: offsets of streams, states of a job, what init's words mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.foundation.frames import WINDOW_BYTES, BadFrame
from xtreemos.foundation.jobd import machine as m
from xtreemos.foundation.jobd import model
from xtreemos.foundation.jobd.spool import SpoolStream
from xtreemos.foundation.jobd.streams import InStream, OutStream


@st.composite
def moves(draw):
    return draw(st.lists(st.one_of(st.tuples(st.just("put"), st.binary(min_size=1, max_size=50)), st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("ack"), st.integers(0, 60)), st.tuples(st.just("reattach"), st.integers(0, 60))), max_size=60))  # fmt: skip


@given(moves())
def test_a_receiver_that_resumes_by_offset_gets_every_byte_once(steps):
    stream, whole, got = OutStream(), bytearray(), bytearray()

    def take():
        piece = stream.take()
        if piece:
            assert piece[0] == len(got)
            got.extend(piece[1])
        return piece

    for name, value in steps:
        if name == "put":
            stream.put(value)
            whole += value
        elif name == "take":
            take()
        elif name == "ack":
            stream.ack(min(len(got), stream.base + value))
        else:
            # the connection broke: the receiver kept some of what was sent, at least what it acknowledged
            del got[max(stream.base, len(got) - value) :]
            stream.seek(len(got))
            assert stream.base == len(got)
        assert stream.base <= stream.sent <= stream.end == len(whole)
        assert stream.room == WINDOW_BYTES - (stream.end - stream.base)
    stream.close()
    while take():
        pass
    assert got == whole
    assert stream.take_eof() == len(whole)
    assert stream.take_eof() is None
    stream.ack(len(whole))
    assert stream.drained


def test_a_full_window_leaves_no_room():
    stream = OutStream()
    stream.put(b"x" * WINDOW_BYTES)
    assert stream.room == 0
    stream.take()
    stream.ack(10)
    assert stream.room == 10


@pytest.mark.parametrize("make", [lambda tmp: OutStream(), lambda tmp: SpoolStream(tmp / "s", 1000)])
def test_streams_refuse_offsets_that_they_never_had(make, tmp_path):
    stream = make(tmp_path)
    stream.put(b"abc")
    with pytest.raises(model.OffsetGone):
        stream.seek(4)
    with pytest.raises(BadFrame):
        stream.ack(1)


def test_acknowledged_output_is_gone():
    stream = OutStream()
    stream.put(b"abcdef")
    stream.take()
    stream.ack(3)
    with pytest.raises(model.OffsetGone):
        stream.seek(2)
    stream.seek(4)
    assert stream.take() == (4, b"ef")


def test_a_spool_file_keeps_what_fits_and_says_so(tmp_path):
    stream = SpoolStream(tmp_path / "stdout", 10)
    for _ in range(5):
        stream.put(b"abcd")
    stream.close()
    data = (tmp_path / "stdout").read_bytes()
    assert data.startswith(b"abcdabcdab\nxos: the limit of 10 bytes")
    assert data.count(b"xos:") == 1
    stream.seek(8)
    assert stream.take() == (8, data[8:])
    assert stream.take_eof() == len(data)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=40))
def test_input_is_accepted_once_however_often_it_is_sent(steps):
    source = bytes(range(256)) * 8
    stream, written = InStream(), bytearray()
    for back, size, write in steps:
        start = max(0, stream.accepted - back)
        stream.on_data(start, source[start : start + back + size])
        chunk = stream.pending()
        if write and chunk:
            count = max(1, len(chunk) // 2)
            written += chunk[:count]
            stream.wrote(count)
        assert stream.written == len(written) <= stream.accepted
    while chunk := stream.pending():
        written += chunk
        stream.wrote(len(chunk))
    assert bytes(written) == source[: stream.accepted]
    stream.on_eof(stream.accepted)
    assert stream.finished


def test_input_refuses_gaps_floods_and_bytes_behind_the_end():
    stream = InStream()
    with pytest.raises(BadFrame):
        stream.on_data(1, b"x")
    with pytest.raises(BadFrame):
        stream.on_data(0, b"x" * (WINDOW_BYTES + 1))
    stream.on_data(0, b"ab")
    with pytest.raises(BadFrame):
        stream.on_eof(1)
    stream.on_eof(2)
    with pytest.raises(BadFrame):
        stream.on_data(2, b"c")


def test_input_goes_nowhere_once_the_job_closed_it():
    stream = InStream()
    stream.on_data(0, b"abc")
    stream.give_up()
    stream.on_data(3, b"def")
    assert stream.pending() is None
    assert stream.take_ack() == 6


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (b"stopped 20", model.SaidStopped(20)),
        (b"continued", model.SaidContinued()),
        (b"noexec 2", model.SaidNoExec(2)),
        (b"exit 3 1000 2000 10", model.SaidEnded(3, None, False, 0.001, 0.002, 10240)),
        (b"signal 11 1 0 0 1", model.SaidEnded(None, 11, True, 0.0, 0.0, 1024)),
    ],
)
def test_words_of_init_are_understood(line, meaning):
    assert model.parse_init_line(line) == meaning


@given(st.binary(max_size=80))
def test_nothing_a_job_writes_into_the_fifo_breaks_jobd(line):
    model.parse_init_line(line)


@pytest.mark.parametrize(
    "line", [b"exit 256 0 0 0", b"exit -1 0 0 0", b"signal 65 0 0 0 0", b"stopped 0", b"exit 1", b"exit 1 2 3 99999999999999999999"]
)
def test_impossible_words_of_init_mean_nothing(line):
    assert model.parse_init_line(line) is None


def ended(code=0, signal=None):
    return model.SaidEnded(code, signal, False, 0.5, 0.25, 4096)


def running(wall_s=None):
    machine = m.JobMachine(wall_s, 1.0)
    machine.on(m.Started(), 2.0)
    return machine


def test_exit_is_persisted_before_it_is_announced_and_only_when_the_container_is_gone():
    machine = running()
    assert machine.on(ended(3), 5.0) == ()
    assert machine.state is model.State.RUNNING
    effects = machine.on(m.ContainerEnded(3 << 8, 0), 6.0)
    assert [type(e) for e in effects] == [m.Persist, m.Announce]
    assert machine.exit == model.ExitRecord(3, None, False, 0.5, 0.25, 4096, 2.0, 6.0, None)


def test_stop_and_continue_are_announced():
    machine = running()
    assert machine.on(model.SaidStopped(20), 3.0) == (m.Announce(),)
    assert (machine.state, machine.stop_signal) == (model.State.STOPPED, 20)
    machine.on(model.SaidContinued(), 4.0)
    assert (machine.state, machine.stop_signal) == (model.State.RUNNING, None)


def test_wall_time_is_term_then_kill_and_the_reason_says_so():
    machine = m.JobMachine(10.0, 0.0)
    assert machine.on(m.Started(), 0.0)[0] == m.Arm(10.0, m.WallTimeOver())
    effects = machine.on(m.WallTimeOver(), 10.0)
    assert effects == (m.SignalTree(15), m.SignalTree(18), m.Arm(5.0, m.GraceOver()))
    assert machine.on(m.GraceOver(), 15.0) == (m.SignalTree(9),)
    machine.on(ended(None, 9), 15.0)
    machine.on(m.ContainerEnded(0, 0), 15.1)
    assert machine.exit.reason == "time limit"


@pytest.mark.parametrize(
    ("events", "code", "signal", "reason"),
    [
        ([ended(None, 9), m.ContainerEnded(0, 1)], None, 9, "memory limit"),
        ([ended(0), m.ContainerEnded(0, 1)], 0, None, None),
        ([model.SaidNoExec(2), ended(127), m.ContainerEnded(0, 0)], 127, None, "program not found"),
        ([model.SaidNoExec(13), ended(126), m.ContainerEnded(0, 0)], 126, None, "program not executable"),
        ([m.ContainerEnded(9, 0)], None, 9, None),
        ([m.ContainerEnded(7 << 8, 0)], 7, None, None),
        ([m.OutputLost("output was lost: No space left on device"), ended(0), m.ContainerEnded(0, 0)], 0, None, "output was lost: No space left on device"),
    ],
)  # fmt: skip
def test_exit_record_says_what_happened(events, code, signal, reason):
    machine = running()
    for event in events:
        machine.on(event, 3.0)
    assert (machine.exit.code, machine.exit.signal, machine.exit.reason) == (code, signal, reason)


EVENTS = [
    m.Started(),
    m.StartRefused(),
    m.ContainerEnded(0, 0),
    m.WallTimeOver(),
    m.GraceOver(),
    model.SaidStopped(19),
    model.SaidContinued(),
    model.SaidNoExec(2),
    ended(),
]


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_a_job_ends_at_most_once_whatever_comes_in_whatever_order(events):
    machine = m.JobMachine(5.0, 0.0)
    persisted = [e for event in events for e in machine.on(event, 1.0) if isinstance(e, m.Persist)]
    assert len(persisted) <= 1
    assert (machine.exit is not None) == bool(persisted)
    if persisted:
        assert machine.state is model.State.EXITED


GOOD = {"job": "jabc.1", "bundle": "/x/jabc.1/bundle", "stdio": "pipes"}


@pytest.mark.parametrize(
    "change",
    [{"job": "../x"}, {"job": "A"}, {"job": 3}, {"bundle": "bundle"}, {"bundle": "/x"}, {"stdio": "tty"}, {"stdio": "spool"}, {"wall_s": 0}, {"wall_s": "1"},
     {"rows": 70000}, {"rows": "x"}, {"cgroup": {"gpu": 1}}, {"cgroup": {"cpus": -1}}, {"cgroup": []}, {"spool_dir": "/x"}, {"spool_bytes_max": "1"}],
)  # fmt: skip
def test_malformed_start_is_refused(change):
    with pytest.raises(model.BadRequest):
        model.StartRequest.from_params({**GOOD, **change})


def test_good_start_is_taken():
    request = model.StartRequest.from_params(
        {**GOOD, "wall_s": 2.5, "cgroup": {"cpus": 0.5, "memory_bytes": 1 << 20, "pids_max": 9}, "rows": None}
    )
    assert (request.limits.cpus, request.limits.pids_max, request.wall_s, request.rows) == (0.5, 9, 2.5, 24)
