"""Installs a release to a disk or a disk image, and proves that it is there.

``source`` reads and checks a release, ``target`` opens what is written to, ``esp`` makes the EFI system partition,
``writer`` does the work in an order that a power cut can't break, ``permission`` keeps the erase challenge.
"""
