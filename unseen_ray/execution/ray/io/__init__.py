"""Ray Data at the edges of a run: data sets that come in, tables and images that go out."""
