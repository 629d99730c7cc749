"""Is this machine fit to become a node? Checked before anything is written, on the installer or any Linux.

``profile`` is what is needed, ``facts`` what was found, ``checks`` holds the one against the other and does no
input or output; ``machine``, ``firmware`` and ``devices`` find the facts. All of it only reads.
"""
