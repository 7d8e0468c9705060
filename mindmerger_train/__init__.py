"""Train merged checkpoints: MindMerger's stages over a frozen encoder and a frozen LLM (torch, transformers)."""
