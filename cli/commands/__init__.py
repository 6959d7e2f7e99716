"""The commands of `sled`, one file per group."""
