"""The mixed stream: its order (pure), the ledger of its decisions, and the mixer that obeys it."""
