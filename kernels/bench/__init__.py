"""Benchmarks of the kernels, each with a control row. They print; they are no tests."""
