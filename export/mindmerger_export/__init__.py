"""Turn a checkpoint into a bundle that computes what torch computed (torch, onnx, gguf)."""
