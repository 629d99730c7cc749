"""The state volume: found, made or opened in the initial RAM disk's phase, by code of the verified root.

    root       is the root hash that was started signed by the verity key?
    disks      which partition: on the disk that the system was started from, and only there
    contents   what is on it: nothing, a making that was cut off, LUKS2, or something foreign
    header     is the LUKS2 header exactly one that this system makes?
    making     a new volume;  opening  an old one;  recovery  with the recovery key, after the TPM was cleared
    luks, host the edges: cryptsetup, and everything else outside this process

Keys reach cryptsetup by its standard input or an anonymous file in memory, never by an argument or a disk.
"""
