"""The front: gRPC in, Works over the seam, gRPC out."""
