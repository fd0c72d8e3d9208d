"""`unseen-ray prepare`: pack a source once into Parquet files whose images decode fast."""
