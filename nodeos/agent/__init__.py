"""What a node does at every boot: identity, enrolment, attestation, and telling its console."""
