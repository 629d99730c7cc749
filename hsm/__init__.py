"""Keys in hardware: the TPM of a node, the PKCS#11 token of an operator."""
