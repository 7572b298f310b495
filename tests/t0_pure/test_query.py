"""The query language of `xos nodes --where`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.foundation.query import BadQuery, number, parse

FACTS = {
    "node": "n2",
    "cpus": 4,
    "memory": 8 << 30,
    "arch": "x86_64",
    "kernel": "6.18.44",
    "load": 0.5,
    "gpus": 0,
    "tags": ["fast", "ssd"],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("cpus>=2 and memory>=1G", True),
        ("cpus > 4", False),
        ("memory>=8G", True),
        ("memory>8G", False),
        ("mem>=8GiB", True),
        ("arch==x86_64 or cpus>=64", True),
        ("arch=aarch64", False),
        ("tag==ssd and not tag==slow", True),
        ("tags!=ssd", False),
        ("tags!=gpu", True),
        ("gpu", False),
        ("kernel>=6.9", True),
        ("kernel<6.2", False),
        ("load<1.5", True),
        ("missing==1", False),
        ("missing!=1", True),
        ("(cpus>=64 or cpus==4) and node=='n2'", True),
        ("not (cpus>=1)", False),
        ("CPUS>=2 AND Memory>=1g", True),
    ],
)
def test_query_matches_as_written(text: str, expected: bool) -> None:
    assert parse(text).matches(FACTS) is expected


@pytest.mark.parametrize(
    "text",
    ["cpus>=", "and", ">=2", "cpus>=2 memory", "(cpus>=2", "cpus>=2)", "cpus ;", "a" * 5000, "(" * 60 + "a" + ")" * 60, "not"],
)
def test_unclear_query_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(BadQuery):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        assert parse(text).matches(FACTS) in (True, False)
    except BadQuery:
        pass


@given(st.integers(0, 10**9), st.sampled_from(["", "K", "M", "G", "T"]))
def test_number_counts_in_binary_units(value: int, suffix: str) -> None:
    assert number(f"{value}{suffix}") == value * 1024 ** " KMGT".index(suffix or " ")
