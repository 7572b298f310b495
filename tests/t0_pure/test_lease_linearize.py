"""The checker of histories, judged by histories that are plainly possible or not, and by trying all orders."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from xtreemos.testing.linearize import UNKNOWN, Model, Row, check, possible


def step(state, op, result):
    if op[0] == "w":
        return op[1]
    return state if result in (UNKNOWN, state) else None


REGISTER = Model(0, step)


def w(value, start, end, **more):
    return Row("p", ("w", value), start, end, None, **more)


def r(value, start, end):
    return Row("q", ("r",), start, end, value)


def test_a_read_sees_the_write_before_it():
    assert check([w(1, 0, 1), r(1, 2, 3)], REGISTER) is None
    assert check([w(1, 0, 1), r(0, 2, 3)], REGISTER) is not None


def test_operations_that_overlap_may_be_in_any_order():
    assert check([w(1, 0, 5), r(0, 1, 2), r(1, 3, 4)], REGISTER) is None
    assert check([w(1, 0, 5), r(1, 1, 2), r(0, 3, 4)], REGISTER) is not None


def test_what_did_not_return_may_come_late_or_never():
    assert check([w(1, 0, None), r(0, 10, 11)], REGISTER) is None
    assert check([w(1, 0, None), r(0, 10, 11), r(1, 12, 13)], REGISTER) is None


def test_what_is_optional_may_never_come_but_not_late():
    assert check([w(1, 0, 5, optional=True), r(0, 10, 11)], REGISTER) is None
    assert check([w(1, 0, 5, optional=True), r(1, 10, 11)], REGISTER) is None
    assert check([w(1, 0, 5, optional=True), r(0, 10, 11), r(1, 12, 13)], REGISTER) is not None


def test_the_shortest_beginning_is_shown():
    rows = [w(1, 0, 1), r(1, 2, 3), r(0, 4, 5), w(2, 6, 7), r(2, 8, 9)]
    found = check(rows, REGISTER)
    assert found.row == rows[2]
    assert found.rows == tuple(rows[:3])
    assert "('r',) -> 0" in str(found)


def test_keys_are_judged_apart():
    model = Model(0, lambda s, op, res: step(s, op[1:], res), key=lambda op: op[0])
    rows = [Row("p", ("a", "w", 1), 0, 1, None), Row("p", ("b", "r"), 2, 3, 0), Row("p", ("b", "r"), 4, 5, 7)]
    assert check(rows[:2], model) is None
    assert check(rows, model).key == "b"


ROW = st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 12), st.one_of(st.none(), st.integers(1, 6)), st.booleans())


def brute(rows):
    must = [row for row in rows if row.returned_at is not None and not row.optional]
    for count in range(len(must), len(rows) + 1):
        for order in itertools.permutations(rows, count):
            if any(row not in order for row in must):
                continue
            state, good, latest = 0, True, -1.0
            for row in order:
                latest = max(latest, row.invoked_at)
                good = good and (row.returned_at is None or latest <= row.returned_at)
                state = step(state, row.op, row.result) if good else None
                if state is None:
                    good = False
                    break
            if good:
                return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.lists(ROW, max_size=5))
def test_it_says_what_trying_all_orders_says(drawn):
    rows = []
    for number, (write, value, start, length, optional) in enumerate(drawn):
        end = None if length is None else start + length
        op = ("w", value) if write else ("r",)
        rows.append(Row(f"p{number}", op, start, end, UNKNOWN if end is None or write else value, optional and write))
    rows.sort(key=lambda row: row.invoked_at)
    assert possible(rows, REGISTER) == brute(rows)
