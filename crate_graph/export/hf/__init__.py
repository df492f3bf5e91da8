"""CRATE as a Hugging Face model: configuration, model, image processor, and their registration."""
