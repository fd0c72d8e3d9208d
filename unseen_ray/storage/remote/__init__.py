"""File systems that URIs name: object stores and the Hugging Face hub."""
