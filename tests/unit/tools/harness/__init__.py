"""What tests of the console rely on."""
