"""The mixed stream: its order (pure functions), the ledger of the decisions, and the mixer that obeys the ledger."""
