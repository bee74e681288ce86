"""Flows of velocity fields, corrected by rejection and resampling."""
