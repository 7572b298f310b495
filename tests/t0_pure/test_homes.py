"""Which homes are bound, and to which mount process, is read from the kernel's list of mounts."""

from pathlib import Path

from xtreemos.node.homes import bound, is_bound

LINES = """\
457 105 0:226 / /xos/demo rw - fuse.xtreemfs demo rw
458 160 0:226 /home-alice /home/alice.demo rw - fuse.xtreemfs demo rw
459 160 0:90 /home-bob /home/bob.demo rw - fuse.xtreemfs demo rw
460 160 0:226 /home-eve /home/eve.other rw - fuse.xtreemfs other rw
461 160 8:1 / /home/carol.demo rw - ext4 /dev/sda rw
"""


def test_a_home_is_alive_if_it_is_of_the_mount_that_is_there_now():
    assert bound("demo", LINES) == {"alice": True, "bob": False}


def test_without_the_mount_of_the_vo_every_home_is_dead():
    assert bound("demo", LINES.split("\n", 1)[1]) == {"alice": False, "bob": False}


def test_a_home_bound_twice_counts_as_the_upper_one():
    assert bound("demo", LINES + "462 459 0:226 /home-bob /home/bob.demo rw - fuse.xtreemfs demo rw\n")["bob"]


def test_a_home_is_known_to_be_there_without_asking_the_file_system():
    source = Path("/xos/demo/home-alice")
    assert is_bound(source, Path("/home/alice.demo"), LINES)
    assert not is_bound(source, Path("/home/alice.demo"), LINES.split("\n", 1)[1]), "no mount is in use"
    assert not is_bound(Path("/xos/demo/home-bob"), Path("/home/bob.demo"), LINES), "that one is dead"
    assert not is_bound(source, Path("/home/carol.demo"), LINES)
    assert not is_bound(Path("/xos/demo/other"), Path("/home/alice.demo"), LINES)
