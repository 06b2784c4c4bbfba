"""Where models come from: loading by name, folder or GGUF file, LoRA adapters, memorising, and the lab model."""
