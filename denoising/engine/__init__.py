"""The C++ engine: convolutions on oneDNN that train and run the networks on CPUs; compiled on first use."""
