"""Evidence: good chains, and every way in which one can be broken (SPEC 15)."""
