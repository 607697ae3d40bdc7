"""What earlier releases left behind, read by this one."""
