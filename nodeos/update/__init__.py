"""Updates of an installed node: preflight, writing to the other slot, blessing, and the way back."""
