"""Identities, bundles, the catalogue of model pairs and the bundled pair."""
