//! The operating system for Headrace: shared memory, process memory, sockets, copy kernels. FFI, RAII and typed errors only.
