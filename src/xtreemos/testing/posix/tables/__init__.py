"""The tables: one module per family of calls, each with `cases(facts)`."""
