"""The verifier: pure functions over bytes. No input or output, no clock, no TPM library."""
