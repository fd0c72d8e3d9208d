"""`unseen-ray prepare`: a source packed once into Parquet that decodes fast."""
