"""The enrolment service: store, service logic, HTTP."""
