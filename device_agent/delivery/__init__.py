"""Delivery of draft models over the network: fetched, checked, tried, put to use, and taken back."""
