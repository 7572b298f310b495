"""How long ended jobs stay on a node's disk."""

from __future__ import annotations

from xtreemos.node.jobfolders import KEEP_S, STRAY_S, Folder, remove, scan, superfluous


def test_output_of_detached_jobs_stays_a_day_and_only_the_latest():
    folders = [Folder(f"j{age}.1", -float(age), spooled=True) for age in range(10)]
    assert superfluous(folders, 0.0) == []
    assert superfluous(folders, 0.0, keep_max=7) == ["j7.1", "j8.1", "j9.1"]
    assert superfluous(folders, KEEP_S - 8.5) == ["j9.1"]


def test_what_a_crash_left_goes_after_a_while():
    assert superfluous([Folder("j.1", 0.0, spooled=False)], STRAY_S) == []
    assert superfluous([Folder("j.1", 0.0, spooled=False)], STRAY_S + 1) == ["j.1"]


def test_folders_that_somebody_knows_are_not_looked_at(tmp_path):
    for key in ("known.1", "jobd.1", "over.1", "log.1"):
        (tmp_path / key / "spool").mkdir(parents=True)
    (tmp_path / "jobd.1" / "jobd.json").touch()
    (tmp_path / "log.1" / "spool" / "stdout").touch()
    (tmp_path / "link.1").symlink_to(tmp_path / "over.1")
    assert {(one.key, one.spooled) for one in scan(tmp_path, {"known.1"})} == {("over.1", False), ("log.1", True)}
    remove(tmp_path, ["over.1", "never.1"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobd.1", "known.1", "link.1", "log.1"]
