"""The skills graph: which training skill helps which evaluation skill."""
