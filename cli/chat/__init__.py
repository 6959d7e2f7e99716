"""The interactive conversation: its loop and what it prints."""
