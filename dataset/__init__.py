"""Images in: sources, decoding, augmentation and loading. Nothing heavy is imported until a process reads images."""
