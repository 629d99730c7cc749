"""One bit, one file: each change ends the boot, or the registrar names it."""

from __future__ import annotations

import pytest

from nodeos.core import layout
from tests.vm.lab import Lab, flip, table_of

pytestmark = pytest.mark.vm


def test_bit_in_the_root(lab: Lab) -> None:
    machine = lab.machine()
    slot, _ = layout.slots(table_of(machine.disk))
    # The superblock of erofs, which every mount reads.
    flip(machine.disk, slot.root, 1024)
    assert lab.boot(machine).kind == "verity"
