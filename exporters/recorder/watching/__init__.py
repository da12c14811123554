"""Processes seen from outside: their journals and pages, how they are, how they ended."""
