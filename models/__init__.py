"""Where models come from: loading by name, folder or GGUF file, LoRA adapters, and the built-in lab model."""
