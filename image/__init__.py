"""The builder of the node image, its measurements, and the virtual machine that boots it."""
