"""The hardware fingerprint of a machine: inventory and measurements."""
