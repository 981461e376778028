"""`carevl compare`: CAREVL against direct distillation and its own parts, from the same items, base, labels and tokens.

An arm (`arms.py`) is a pure change of settings and of stored labels (`labels.py`); its stages (`stages.py`)
lie in the run directory by fingerprint, so arms and seeds share what they have in common. `outcomes.py` turns stored
predictions into figures, `guarantee.py` asks of the router alone what no training can change, `report.py` tells.
"""
