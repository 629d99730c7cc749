"""The replica daemon: runs canisters and answers under a chain key."""
