"""The command line, sled."""
