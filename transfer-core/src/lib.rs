//! The transfer engine: agents, regions, descriptor lists and transfers over shared memory and TCP.
