"""A finished run in the form that Hugging Face users expect: a folder with a model card, on the hub where asked."""
