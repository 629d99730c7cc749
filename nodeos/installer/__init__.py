"""What runs on a machine that was started from installation media, from the site's configuration to a disk.

``program`` is the recipe; ``decide`` judges, ``boot_source`` tells what the machine was started from, ``medium``
reads that, ``target`` writes through ``nodeos.install``, ``boot_entry`` tells the firmware, ``result`` reports.
"""
