//! The `secretfs` program: arguments, tracing, exit code.

fn main() {}
