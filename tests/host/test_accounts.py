from pathlib import Path

import pytest

from hive_core.host.accounts import taken_ranges


def test_accounts_subordinate_ids_and_other_machines_are_taken(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n+\nme:x:1000:1000::/home/me:/bin/sh\n")
    (tmp_path / "group").write_text("root:x:0:\nbroken:x:y:\nhive:x:996:me,you\n")
    (tmp_path / "subuid").write_text(
        "me:100000:65536\n# a comment\nbroken:x:1\nempty:5:0\nshort:1\n\nyou:165536:65536\n"
    )
    (tmp_path / "subgid").write_text("me:300000:1000\n")
    picked = tmp_path / "nspawn-uid"
    picked.mkdir()
    (picked / "720896").touch()
    (picked / "lock").touch()

    assert taken_ranges(tmp_path, picked) == [
        *((0, 1), (1000, 1), (0, 1), (996, 1)),
        *((100000, 65536), (165536, 65536), (300000, 1000)),
        (720896, 65536),
    ]


def test_what_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert taken_ranges(tmp_path, tmp_path / "nothing") == []


def test_what_cannot_be_read_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "subuid").mkdir()

    with pytest.raises(IsADirectoryError):
        taken_ranges(tmp_path, tmp_path / "nothing")
