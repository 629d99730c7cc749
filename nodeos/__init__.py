"""nodeos: the operating system of an Internet Computer node machine, from image to serving replica."""

__version__ = "0.1.0"
