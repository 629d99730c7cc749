"""Writes a disk image to a disk or stick, and proves that the disk holds it."""
