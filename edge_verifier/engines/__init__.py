"""Target models behind one interface; each library is imported by its own file only."""
