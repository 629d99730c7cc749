"""The registrar, its verifier, and the operator's side of enrolment."""
