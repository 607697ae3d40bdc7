"""The sealing core against known answers, properties and broken input (SPEC 2 to 6)."""
