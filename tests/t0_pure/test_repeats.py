"""The same thing is said once in a while, and memory for it is bounded."""

from xtreemos.foundation.repeats import Repeats


def test_the_same_is_let_through_again_only_after_a_while():
    said = Repeats(again_s=60, most=3)
    assert [said.is_repeat("a", now) for now in (0, 1, 59.9, 60, 61)] == [False, True, True, False, True]


def test_the_oldest_is_forgotten_when_there_is_too_much():
    said = Repeats(again_s=60, most=2)
    assert not any(said.is_repeat(key, 0) for key in "abc")
    assert said.is_repeat("c", 1)
    assert not said.is_repeat("a", 1)
