"""The plan of a lab: names, sites, addresses, records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.errors import UsageError
from xtreemos.lab.enter import Request, parse
from xtreemos.lab.model import LabError, NoSuchNode, Running, hosts_file, lab_from_json, next_node, plan


@given(st.integers(1, 200), st.integers(1, 50))
def test_every_node_has_an_address_of_its_own_in_its_site(nodes, sites):
    if sites > nodes:
        with pytest.raises(UsageError):
            plan("l", nodes, sites)
        return
    lab = plan("l", nodes, sites)
    assert len({node.address for node in lab.nodes}) == nodes
    assert {node.site for node in lab.nodes} == set(range(1, sites + 1))
    assert all(node.address.startswith(f"10.78.{node.site}.") for node in lab.nodes)
    assert all(int(node.address.rpartition(".")[2]) < 255 for node in lab.nodes)


@pytest.mark.parametrize(("nodes", "core"), [(1, 1), (2, 1), (3, 3), (9, 3)])
def test_three_nodes_are_core_if_there_are_three(nodes, core):
    assert [node.core for node in plan("l", nodes, 1).nodes] == [True] * core + [False] * (nodes - core)


@pytest.mark.parametrize(("nodes", "sites", "core"), [(0, 1, None), (201, 1, None), (3, 4, None), (3, 0, None), (3, 1, 2), (2, 1, 3)])
def test_impossible_plans_are_refused(nodes, sites, core):
    with pytest.raises(UsageError):
        plan("l", nodes, sites, core)


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a b", "-a", "a" * 32, "a\n"])
def test_bad_lab_names_are_refused(name):
    with pytest.raises(UsageError):
        plan(name, 1, 1)


def test_record_survives_json():
    lab = plan("l", 3, 2)
    lab = replace(lab.with_node(replace(lab.nodes[1], init=Running(7, 9))), switch=Running(3, 4), ready=True)
    assert lab_from_json(json.loads(json.dumps(lab.to_json()))) == lab


def test_record_of_another_version_is_refused():
    with pytest.raises(LabError):
        lab_from_json({**plan("l", 1, 1).to_json(), "version": 0})


def test_added_node_takes_the_next_number_and_is_never_core():
    lab = plan("l", 1, 1)
    node = next_node(lab)
    assert (node.name, node.core, node.site) == ("n2", False, 1)
    with pytest.raises(UsageError):
        next_node(lab, "s2")


def test_hosts_file_names_every_node():
    lab = plan("l", 3, 3)
    assert "10.78.2.12 n2\n" in hosts_file(lab, lab.nodes[0])
    with pytest.raises(NoSuchNode):
        lab.node("n4")


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["n1", "--", "ls", "-l"], Request("n1", ("ls", "-l"))),
        (["n1", "--user", "alice", "--name", "x", "--", "a", "--", "b"], Request("n1", ("a", "--", "b"), "alice", "x")),
        (["--name=x", "n1", "--user=bob", "--", "a"], Request("n1", ("a",), "bob", "x")),
        (["n1", "ls"], None),
        (["--help"], None),
        (["n1", "--"], None),
        (["n1", "--wrong", "--", "a"], None),
        (["--user", "--", "a"], None),
    ],
)
def test_fast_parser_takes_the_plain_forms_and_leaves_the_rest(words, request_):
    assert parse(words) == request_
