"""The closed-set stack: tokenizer, CLIP, VAE and U-Net of stock classes in small sizes, saved as one diffusers
directory."""
