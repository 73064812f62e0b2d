"""What several pages need: the run and the methods in the address, tables, texts, explanations.

May import: charts, clp_lightning (store, report).
"""
