"""Side-by-side timings of advdim against other libraries and a plain training loop; `make bench` runs them."""
