"""`mm-eval`: ask benchmark questions of the merge and of the LLM alone, and say what the difference is worth."""
