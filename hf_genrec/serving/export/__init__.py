"""A recommender for other engines: ONNX graphs and catalogs."""
