"""Who may read a backup and what is restored from it."""

import stat

from headrace.model.layout import Layout
from headrace.process.backup import COMPLETE, backup, restore


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_backup_is_its_owners_alone(tmp_path):
    layout = Layout.at(tmp_path / "data")
    (layout.root / "system" / "ledger").mkdir(parents=True)
    assert mode(backup(layout, tmp_path / "copy")) == 0o700


def test_what_is_restored_is_its_owners_alone_wherever_the_backup_has_been(tmp_path):
    source = tmp_path / "copy"
    source.mkdir(mode=0o755)
    (source / COMPLETE).touch()
    restore(source, Layout.at(tmp_path / "data"))
    assert mode(tmp_path / "data") == 0o700
