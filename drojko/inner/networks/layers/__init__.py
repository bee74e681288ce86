"""Networks of any known layers: their operations, read off a run, and linear bounds of them."""
